package userspace_test

import (
	"io"
	"net"
	"testing"
	"time"
)

// The guest's stack runs in the same process here, so a figure is less than
// what the host's side alone could do.
func BenchmarkGuestToWorld(b *testing.B) {
	r := newRig(b)
	got := make(chan int64, 1)
	r.serve(b, "203.0.113.80:80", func(c net.Conn) {
		n, _ := io.Copy(io.Discard, c)
		got <- n
	})
	c := r.mustDial(b, "tcp", "203.0.113.80:80")
	c.SetDeadline(time.Now().Add(time.Minute))
	buf := make([]byte, 1<<20)
	b.SetBytes(int64(len(buf)))
	for b.Loop() {
		if _, err := c.Write(buf); err != nil {
			b.Fatal(err)
		}
	}
	c.(interface{ CloseWrite() error }).CloseWrite()
	<-got
}

func BenchmarkWorldToGuest(b *testing.B) {
	r := newRig(b)
	r.serve(b, "203.0.113.80:80", func(c net.Conn) {
		buf := make([]byte, 256<<10)
		for {
			if _, err := c.Write(buf); err != nil {
				return
			}
		}
	})
	c := r.mustDial(b, "tcp", "203.0.113.80:80")
	c.SetDeadline(time.Now().Add(time.Minute))
	const piece = 1 << 20
	buf := make([]byte, piece)
	b.SetBytes(piece)
	for b.Loop() {
		if _, err := io.ReadFull(c, buf); err != nil {
			b.Fatal(err)
		}
	}
	c.Close()
}

func BenchmarkRoundTrip(b *testing.B) {
	r := newRig(b)
	r.serve(b, "203.0.113.80:80", echo)
	c := r.mustDial(b, "tcp", "203.0.113.80:80")
	c.SetDeadline(time.Now().Add(time.Minute))
	buf := make([]byte, 1)
	for b.Loop() {
		if _, err := c.Write(buf); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(c, buf); err != nil {
			b.Fatal(err)
		}
	}
}
