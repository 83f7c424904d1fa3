// Package archtest holds tests of the house itself: what may import what,
// what each binary may link, that every package says what it is, that no word
// stands in the tree which must not. It has no code of the product.
package archtest
