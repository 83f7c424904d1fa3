package link

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// record is a Pipe that only remembers what is written to it.
type record struct{ bytes.Buffer }

func (*record) Close() error                     { return nil }
func (*record) SetReadDeadline(time.Time) error  { return nil }
func (*record) SetWriteDeadline(time.Time) error { return nil }

// script is a Pipe that reads from a fixed text.
type script struct {
	io.Reader
	record
}

func (s *script) Read(p []byte) (int, error) { return s.Reader.Read(p) }

// hostBytes is what a host of a serial port sends: zeros, SYNC and frames.
func hostBytes(nonce []byte, payloads ...[]byte) []byte {
	b := appendRecord(make([]byte, maxFrame), syncMagic, nonce)
	c := newConn(newBuffered(&record{}), nonce, 0, nil)
	for i, p := range payloads {
		b = c.Append(b, Frame{Type: 1, Stream: uint32(i), Payload: p})
	}
	return b
}

// guestReads gives every payload that a guest delivers from a byte stream, by
// epochs.
func guestReads(t *testing.T, stream []byte) [][]string {
	t.Helper()
	a := NewAcceptor(&script{Reader: bytes.NewReader(stream)}, true)
	var epochs [][]string
	for {
		c, err := a.Accept()
		if err != nil {
			return epochs
		}
		got := []string{}
		for {
			var f Frame
			if c.Read(&f) != nil {
				break
			}
			got = append(got, string(f.Payload))
		}
		epochs = append(epochs, got)
	}
}

func TestAHostThatIsCutAnywhereLeavesTheNextInStep(t *testing.T) {
	first := hostBytes([]byte("first nonce 1234"), []byte("one"), bytes.Repeat([]byte("two"), 40), []byte(syncMagic), nil)
	second := hostBytes([]byte("second nonce 123"), []byte("three"), []byte("four"))
	whole := []string{"one", string(bytes.Repeat([]byte("two"), 40)), syncMagic, ""}
	step := 1
	if testing.Short() {
		step = 97
	}
	for cut := 0; cut <= len(first); cut++ {
		if cut < maxFrame-8 && cut%997 != 0 || cut%step != 0 {
			continue // zeros are like zeros
		}
		epochs := guestReads(t, append(append([]byte{}, first[:cut]...), second...))
		last := epochs[len(epochs)-1]
		if len(last) != 2 || last[0] != "three" || last[1] != "four" {
			t.Fatalf("cut at %d: the second host's frames came as %q", cut, last)
		}
		for _, e := range epochs[:len(epochs)-1] {
			for i, p := range e {
				if p != whole[i] {
					t.Fatalf("cut at %d: frame %d came as %q", cut, i, p)
				}
			}
		}
	}
}

func TestLostAndChangedBytesAreNoticed(t *testing.T) {
	whole := hostBytes([]byte("the nonce is 16b"), []byte("one"), []byte("two"), []byte("three"))
	start := maxFrame + recordSize
	for at := start; at < len(whole)-TrailerSize; at++ {
		lost := append(append([]byte{}, whole[:at]...), whole[at+1:]...)
		for _, p := range guestReads(t, lost)[0] {
			if p != "one" && p != "two" && p != "three" {
				t.Fatalf("without byte %d %q was delivered", at, p)
			}
		}
	}
	frame := HeaderSize + 3 + TrailerSize
	missing := append(append([]byte{}, whole[:start]...), whole[start+frame:]...)
	if got := guestReads(t, missing)[0]; len(got) != 0 {
		t.Errorf("a whole frame was lost, and %q delivered", got)
	}
}

func TestAHostDropsEverythingBeforeItsOwnAck(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	go func() {
		in := newBuffered(b)
		for {
			nonce, used := findRecord(in.bytes(), syncMagic)
			if nonce != nil {
				nonce = bytes.Clone(nonce)
				b.Write([]byte("left over from another time"))
				b.Write(appendRecord(nil, ackMagic, []byte("another's nonce!")))
				ack := appendRecord([]byte(ackMagic[:7]), ackMagic, nonce)
				for i := range ack {
					b.Write(ack[i : i+1])
				}
				c := newConn(in, nonce, 0, nil)
				b.Write(c.Append(nil, Frame{Type: 1, Payload: []byte("first")}))
				return
			}
			in.r += used
			if in.more() != nil {
				return
			}
		}
	}()
	c, err := Host(t.Context(), a, true, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	var f Frame
	if err := c.Read(&f); err != nil || string(f.Payload) != "first" {
		t.Errorf("%q %v", f.Payload, err)
	}
}

func TestAGuestOutOfStepSaysSo(t *testing.T) {
	host, guest := net.Pipe()
	defer host.Close()
	defer guest.Close()
	go func() {
		a := NewAcceptor(guest, true)
		c, err := a.Accept()
		if err != nil {
			return
		}
		var f Frame
		for c.Read(&f) == nil {
		}
		c.Close()
		a.Accept()
	}()
	c, err := Host(t.Context(), host, true, 0)
	if err != nil {
		t.Fatal(err)
	}
	go host.Write([]byte("this is no frame at all"))
	var f Frame
	if err := c.Read(&f); !errors.Is(err, ErrDesync) {
		t.Errorf("the host went on: %v", err)
	}
}

func TestHostEndsWithItsContext(t *testing.T) {
	a, b := net.Pipe()
	defer b.Close()
	go io.Copy(io.Discard, b)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := Host(ctx, a, true, 0); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

func TestPortsAreFoundByName(t *testing.T) {
	class := t.TempDir()
	for dev, name := range map[string]string{"vport0p1": "org.other", "vport0p2": "banger.agent"} {
		os.Mkdir(filepath.Join(class, dev), 0o755)
		os.WriteFile(filepath.Join(class, dev, "name"), []byte(name+"\n"), 0o644)
	}
	if dev, err := findPort(class, "banger.agent"); err != nil || dev != "vport0p2" {
		t.Error(dev, err)
	}
	if _, err := findPort(class, "none"); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	if _, err := findPort(filepath.Join(class, "none"), "x"); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

func FuzzGuestReads(f *testing.F) {
	good := hostBytes([]byte("the nonce is 16b"), []byte("one"))[maxFrame-50:]
	f.Add(good)
	f.Add(good[:len(good)-3])
	f.Add([]byte(syncMagic + syncMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, e := range guestReads(t, b) {
			for _, p := range e {
				if len(p) > MaxPayload {
					t.Fatal("too long a payload")
				}
			}
		}
	})
}

func FuzzHostReads(f *testing.F) {
	nonce := []byte("the nonce is 16b")
	f.Add(newConn(nil, nonce, 0, nil).Append(nil, Frame{Type: 1, Payload: []byte("x")}))
	f.Fuzz(func(t *testing.T, b []byte) {
		c := newConn(newBuffered(&script{Reader: bytes.NewReader(b)}), nonce, time.Second, nil)
		var fr Frame
		n := 0
		for c.Read(&fr) == nil {
			n += HeaderSize + len(fr.Payload) + TrailerSize
		}
		if n > len(b) {
			t.Fatal("more frames than bytes")
		}
	})
}

func FuzzGreeting(f *testing.F) {
	for _, s := range []string{"OK 1\n", "OK 99999999999\n", "NO\n", "OK 1", "\n", "OK +1\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		line, err := readGreeting(r)
		if len(b)-r.Len() > maxGreeting {
			t.Fatal("read beyond the bound")
		}
		if err == nil && checkGreeting(line) == nil && !bytes.HasPrefix(b, []byte("OK ")) {
			t.Fatalf("took %q", b)
		}
	})
}
