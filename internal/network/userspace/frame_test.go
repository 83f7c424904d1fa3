package userspace_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net/netip"
	"testing"

	"github.com/banger-dev/banger/internal/network/userspace"
)

func framed(frames ...[]byte) []byte {
	var b []byte
	for _, f := range frames {
		b = append(binary.BigEndian.AppendUint32(b, uint32(len(f))), f...)
	}
	return b
}

func TestFrameReader(t *testing.T) {
	long := bytes.Repeat([]byte{7}, 65535+14)
	r := userspace.NewFrameReader(bytes.NewReader(framed([]byte("runt"), bytes.Repeat([]byte{1}, 14), long)))
	for _, want := range []int{14, len(long)} {
		got, err := r.NextFrame()
		if err != nil || len(got) != want {
			t.Fatalf("%d bytes, %v; want %d", len(got), err, want)
		}
	}
	if _, err := r.NextFrame(); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v", err)
	}
	r = userspace.NewFrameReader(bytes.NewReader([]byte{0, 0, 0, 20, 1, 2}))
	if _, err := r.NextFrame(); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("cut short: %v", err)
	}
	r = userspace.NewFrameReader(bytes.NewReader([]byte{0, 2, 0, 0}))
	if _, err := r.NextFrame(); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("absurd length: %v", err)
	}
}

func packet4(src, dst string, proto byte) []byte {
	b := make([]byte, 34)
	b[12], b[13], b[14], b[23] = 8, 0, 0x45, proto
	s, d := netip.MustParseAddr(src).As4(), netip.MustParseAddr(dst).As4()
	copy(b[26:], s[:])
	copy(b[30:], d[:])
	return b
}

func packet6(src, dst string, next, kind byte) []byte {
	b := make([]byte, 55)
	b[12], b[13], b[14], b[20], b[54] = 0x86, 0xdd, 0x60, next, kind
	s, d := netip.MustParseAddr(src).As16(), netip.MustParseAddr(dst).As16()
	copy(b[22:], s[:])
	copy(b[38:], d[:])
	return b
}

func TestAdmit(t *testing.T) {
	arp := make([]byte, 42)
	arp[12], arp[13] = 8, 6
	vlan := make([]byte, 60)
	vlan[12] = 0x81
	const me = "fd62:616e:6765:72::15"
	for name, c := range map[string]struct {
		frame []byte
		want  bool
	}{
		"arp":                   {arp, true},
		"tcp":                   {packet4("10.0.2.15", "8.8.8.8", 6), true},
		"spoofed source":        {packet4("10.0.2.16", "8.8.8.8", 6), false},
		"ping of the gateway":   {packet4("10.0.2.15", "10.0.2.2", 1), true},
		"ping of the world":     {packet4("10.0.2.15", "8.8.8.8", 1), false},
		"tcp6":                  {packet6(me, "2600::1", 6, 0), true},
		"spoofed source 6":      {packet6("2600::2", "2600::1", 6, 0), false},
		"neighbour, link-local": {packet6("fe80::1", "ff02::1:ff00:2", 58, 135), true},
		"duplicate detection":   {packet6("::", "ff02::1:ff00:15", 58, 135), true},
		"ping6 of the gateway":  {packet6(me, "fd62:616e:6765:72::2", 58, 128), true},
		"ping6 of the world":    {packet6(me, "2600::1", 58, 128), false},
		"vlan":                  {vlan, false},
		"cut short":             {packet4("10.0.2.15", "8.8.8.8", 6)[:20], false},
		"nothing":               {nil, false},
	} {
		if got := userspace.Admit(c.frame); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

func FuzzFrames(f *testing.F) {
	f.Add(framed(packet4("10.0.2.15", "8.8.8.8", 6), packet6("fe80::1", "ff02::1", 58, 135)))
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := userspace.NewFrameReader(bytes.NewReader(b))
		for {
			frame, err := r.NextFrame()
			if err != nil {
				return
			}
			if len(frame) < 14 || len(frame) > len(b) {
				t.Fatalf("frame of %d bytes", len(frame))
			}
			userspace.Admit(frame)
		}
	})
}

func FuzzRouteType(f *testing.F) {
	f.Add(make([]byte, 64))
	f.Add([]byte{})
	f.Fuzz(func(_ *testing.T, b []byte) {
		// It must not read beyond what it has.
		_, _ = userspace.RouteType(b)
	})
}
