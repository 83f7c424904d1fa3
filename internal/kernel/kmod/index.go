package kmod

import (
	"bytes"
	"encoding/binary"
	"sort"
)

// The binary index is a prefix tree that libkmod walks in place (its file
// format version 2.1): each node lies after its children and is named by its
// offset, whose top bits say which parts it has.
const (
	indexMagic   = 0xb007f457
	indexVersion = 0x00020001

	nodePrefix   = 0x80000000
	nodeValues   = 0x40000000
	nodeChildren = 0x20000000
	nodeOffset   = 0x0fffffff
)

type indexValue struct {
	priority uint32
	value    string
}

type indexNode struct {
	prefix   string
	values   []indexValue
	children map[byte]*indexNode
}

// index maps strings of 7-bit characters to values ordered by priority.
type index struct{ root *indexNode }

func newIndex() *index { return &index{root: &indexNode{}} }

func (x *index) insert(key, value string, priority uint32) {
	n := x.root
	for {
		common := 0
		for common < len(n.prefix) && common < len(key) && n.prefix[common] == key[common] {
			common++
		}
		if common < len(n.prefix) {
			// The new key leaves inside this node's prefix: split it.
			rest := &indexNode{prefix: n.prefix[common+1:], values: n.values, children: n.children}
			n.children = map[byte]*indexNode{n.prefix[common]: rest}
			n.prefix, n.values = n.prefix[:common], nil
		}
		key = key[common:]
		if key == "" {
			n.add(value, priority)
			return
		}
		next := n.children[key[0]]
		if next == nil {
			next = &indexNode{prefix: key[1:]}
			if n.children == nil {
				n.children = map[byte]*indexNode{}
			}
			n.children[key[0]] = next
			next.add(value, priority)
			return
		}
		n, key = next, key[1:]
	}
}

func (n *indexNode) add(value string, priority uint32) {
	for _, v := range n.values {
		if v.value == value {
			return
		}
	}
	n.values = append(n.values, indexValue{priority, value})
	sort.SliceStable(n.values, func(i, j int) bool { return n.values[i].priority < n.values[j].priority })
}

// bytes gives the file's content.
func (x *index) bytes() []byte {
	var b bytes.Buffer
	put32 := func(v uint32) { _ = binary.Write(&b, binary.BigEndian, v) }
	put32(indexMagic)
	put32(indexVersion)
	put32(0) // the root's offset, known at the end
	root := x.root.write(&b)
	out := b.Bytes()
	binary.BigEndian.PutUint32(out[8:], root)
	return out
}

func (n *indexNode) write(b *bytes.Buffer) uint32 {
	var first, last int
	var offs []uint32
	if len(n.children) > 0 {
		first, last = 255, 0
		for c := range n.children {
			first, last = min(first, int(c)), max(last, int(c))
		}
		offs = make([]uint32, last-first+1)
		for c := first; c <= last; c++ {
			if child := n.children[byte(c)]; child != nil {
				offs[c-first] = child.write(b)
			}
		}
	}
	off := uint32(b.Len())
	if n.prefix != "" {
		b.WriteString(n.prefix)
		b.WriteByte(0)
		off |= nodePrefix
	}
	if offs != nil {
		b.WriteByte(byte(first))
		b.WriteByte(byte(last))
		_ = binary.Write(b, binary.BigEndian, offs)
		off |= nodeChildren
	}
	if len(n.values) > 0 {
		_ = binary.Write(b, binary.BigEndian, uint32(len(n.values)))
		for _, v := range n.values {
			_ = binary.Write(b, binary.BigEndian, v.priority)
			b.WriteString(v.value)
			b.WriteByte(0)
		}
		off |= nodeValues
	}
	return off
}
