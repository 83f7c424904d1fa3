// Package test holds banger's stories: text archives that drive the built
// binaries as a person or program would. Those in script run everywhere, with
// the hosted driver in the place of a microVM; those in e2e run with the build
// tag of that name in real microVMs. It exports nothing.
package test
