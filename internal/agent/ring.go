package agent

import "github.com/banger-dev/banger/internal/guest/wire"

// ring keeps a command's output from the first byte that the host has not
// acknowledged, at most wire.OutputRing of it. Memory is taken as needed and
// given back when everything was acknowledged.
type ring struct {
	buf  []byte
	head int    // index of the byte at base
	n    int    // bytes kept
	base uint64 // offset of the first byte kept
	eof  bool
}

const ringStart = 8 << 10

func (r *ring) end() uint64 { return r.base + uint64(r.n) }
func (r *ring) room() int   { return wire.OutputRing - r.n }

// write takes as much of p as there is room for.
func (r *ring) write(p []byte) int {
	p = p[:min(len(p), r.room())]
	if need := r.n + len(p); need > len(r.buf) {
		size := max(len(r.buf), ringStart)
		for size < need {
			size *= 2
		}
		bigger := make([]byte, size)
		r.peek(r.base, bigger[:r.n])
		r.buf, r.head = bigger, 0
	}
	for left := p; len(left) > 0; {
		at := (r.head + r.n) % len(r.buf)
		k := copy(r.buf[at:min(len(r.buf), at+len(left))], left)
		r.n += k
		left = left[k:]
	}
	return len(p)
}

// peek copies what lies at off into p and says how much it was.
func (r *ring) peek(off uint64, p []byte) int {
	if off < r.base || off >= r.end() {
		return 0
	}
	skip := int(off - r.base)
	p = p[:min(len(p), r.n-skip)]
	got := 0
	for got < len(p) {
		at := (r.head + skip + got) % len(r.buf)
		got += copy(p[got:], r.buf[at:])
	}
	return got
}

// ack forgets everything before off; it says whether anything was.
func (r *ring) ack(off uint64) bool {
	if off <= r.base || off > r.end() {
		return false
	}
	k := int(off - r.base)
	r.base = off
	r.n -= k
	if r.n == 0 {
		r.head = 0
		if len(r.buf) > ringStart {
			r.buf = nil
		}
	} else {
		r.head = (r.head + k) % len(r.buf)
	}
	return true
}

// holds says whether a reader can go on at off.
func (r *ring) holds(off uint64) bool { return off >= r.base && off <= r.end() }
