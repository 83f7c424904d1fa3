package mux

import (
	"sync"
	"time"
)

// Sizes of the pieces that buffers are made of. Many idle streams hold one
// small piece at most, a busy one moves whole frames.
const (
	smallChunk = 4 << 10
	largeChunk = 32 << 10
)

// chunk is a piece of a buffer: data[r:w] is unread.
type chunk struct {
	next *chunk
	r, w int
	data []byte
}

type chunkPool struct{ small, large sync.Pool }

func (p *chunkPool) get(n int) *chunk {
	pool, size := &p.small, smallChunk
	if n > smallChunk {
		pool, size = &p.large, largeChunk
	}
	if c, ok := pool.Get().(*chunk); ok {
		return c
	}
	return &chunk{data: make([]byte, size)}
}

func (p *chunkPool) put(c *chunk) {
	c.next, c.r, c.w = nil, 0, 0
	if len(c.data) == smallChunk {
		p.small.Put(c)
	} else {
		p.large.Put(c)
	}
}

// buffer is a stream's received and unread bytes.
type buffer struct {
	first, last *chunk
	size        int
}

func (b *buffer) write(p []byte, pool *chunkPool) {
	b.size += len(p)
	for len(p) > 0 {
		if b.last == nil || b.last.w == len(b.last.data) {
			c := pool.get(len(p))
			if b.last == nil {
				b.first = c
			} else {
				b.last.next = c
			}
			b.last = c
		}
		n := copy(b.last.data[b.last.w:], p)
		b.last.w += n
		p = p[n:]
	}
}

func (b *buffer) read(p []byte, pool *chunkPool) int {
	total := 0
	for len(p) > 0 && b.first != nil {
		c := b.first
		n := copy(p, c.data[c.r:c.w])
		c.r += n
		p = p[n:]
		total += n
		if c.r == c.w {
			b.first = c.next
			if b.first == nil {
				b.last = nil
			}
			pool.put(c)
		}
	}
	b.size -= total
	return total
}

func (b *buffer) drop(pool *chunkPool) {
	for c := b.first; c != nil; {
		next := c.next
		pool.put(c)
		c = next
	}
	*b = buffer{}
}

// deadline is a moment that waiters can select on and that may be moved.
type deadline struct {
	mu    sync.Mutex
	timer *time.Timer
	c     chan struct{}
}

// passed gives a channel that is closed when the present deadline passes; nil
// where there is none. Moving the deadline wakes nobody but by passing.
func (d *deadline) passed() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.c == nil {
		d.c = make(chan struct{})
	}
	return d.c
}

func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil && !d.timer.Stop() && d.c != nil {
		// It ran or is about to: whoever waited on it has been told.
		d.c = nil
	}
	d.timer = nil
	if d.c != nil && isClosed(d.c) {
		d.c = nil
	}
	if t.IsZero() {
		return
	}
	if d.c == nil {
		d.c = make(chan struct{})
	}
	c := d.c
	if wait := time.Until(t); wait > 0 {
		d.timer = time.AfterFunc(wait, func() { close(c) })
		return
	}
	close(c)
}

func isClosed(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
