package mux

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/banger-dev/banger/internal/guest/link"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pipePair gives the two ends of a Unix socket pair.
func pipePair(t testing.TB) (net.Conn, net.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var out [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		c, err := net.FileConn(f)
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
		out[i] = c
	}
	return out[0], out[1]
}

// connPair gives both ends of a synchronised link.
func connPair(t testing.TB) (host, guest *link.Conn) {
	t.Helper()
	a, b := pipePair(t)
	acc := make(chan *link.Conn, 1)
	go func() {
		c, err := link.NewAcceptor(b, false).Accept()
		if err != nil {
			t.Error(err)
		}
		acc <- c
	}()
	host, err := link.Host(t.Context(), a, false, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	return host, <-acc
}

func sessionPair(t testing.TB, handle func(*Stream)) (host, guest *Session) {
	t.Helper()
	h, g := connPair(t)
	host, guest = Host(h), Guest(g, handle)
	t.Cleanup(func() {
		host.Close()
		guest.Close()
	})
	return host, guest
}

func echo(st *Stream) {
	io.Copy(st, st)
	st.Close()
}

func open(t testing.TB, s *Session) *Stream {
	t.Helper()
	st, err := s.Open()
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func within(t testing.TB, d time.Duration, what string, f func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(d); time.Now().Before(end); <-tick.C {
		if f() {
			return
		}
	}
	t.Fatalf("not within %v: %s", d, what)
}

func TestEveryByteComesBackAndTheStreamIsForgotten(t *testing.T) {
	host, guest := sessionPair(t, echo)
	data := make([]byte, 3<<20)
	rand.NewChaCha8([32]byte{1}).Read(data)
	st := open(t, host)
	go func() {
		st.Write(data[:1])
		st.Write(data[1:5000])
		st.WriteLast(data[5000:])
	}()
	got, err := io.ReadAll(st)
	if err != nil || !bytes.Equal(got, data) {
		t.Fatalf("%d bytes came back, error %v", len(got), err)
	}
	st.Close()
	within(t, time.Second, "no stream left", func() bool { return host.Streams() == 0 && guest.Streams() == 0 })
	if host.grown != 0 {
		t.Errorf("%d bytes of the budget are gone", host.grown)
	}
}

func TestHalfCloseLeavesTheOtherHalfOpen(t *testing.T) {
	host, _ := sessionPair(t, func(st *Stream) {
		all, _ := io.ReadAll(st)
		fmt.Fprintf(st, "%d bytes", len(all))
		st.Close()
	})
	st := open(t, host)
	defer st.Close()
	st.Write(make([]byte, 100_000))
	if err := st.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if _, err := st.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("write after CloseWrite: %v", err)
	}
	got, err := io.ReadAll(st)
	if string(got) != "100000 bytes" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestCloseDeliversWhatWasWritten(t *testing.T) {
	heard := make(chan string, 1)
	host, guest := sessionPair(t, func(st *Stream) {
		all, err := io.ReadAll(st)
		heard <- fmt.Sprintf("%s %v", all, err)
		st.Close()
	})
	st := open(t, host)
	st.Write([]byte("last words"))
	st.Close()
	if got := <-heard; got != "last words <nil>" {
		t.Error(got)
	}
	within(t, time.Second, "no stream left", func() bool { return host.Streams() == 0 && guest.Streams() == 0 })
}

func TestCloseStopsAPeerThatWrites(t *testing.T) {
	ended := make(chan error, 1)
	host, _ := sessionPair(t, func(st *Stream) {
		_, err := st.Write(make([]byte, 10<<20))
		ended <- err
		st.Close()
	})
	st := open(t, host)
	st.Write([]byte("go"))
	io.ReadFull(st, make([]byte, 10))
	st.Close()
	if err := <-ended; !errors.Is(err, ErrStopped) {
		t.Error(err)
	}
	within(t, time.Second, "no stream left", func() bool { return host.Streams() == 0 })
}

func TestResetEndsBothEnds(t *testing.T) {
	ended := make(chan error, 1)
	host, _ := sessionPair(t, func(st *Stream) {
		_, err := io.Copy(io.Discard, st)
		ended <- err
		st.Close()
	})
	ctx, cancel := context.WithCancel(t.Context())
	st := open(t, host)
	st.ResetOn(ctx)
	st.Write([]byte("x"))
	cancel()
	var reset *ResetError
	if err := <-ended; !errors.As(err, &reset) || reset.Code != Cancelled {
		t.Error(err)
	}
	if _, err := st.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	within(t, time.Second, "no stream left", func() bool { return host.Streams() == 0 })
}

func TestDeadlines(t *testing.T) {
	hold := make(chan struct{})
	host, _ := sessionPair(t, func(st *Stream) { <-hold; io.Copy(io.Discard, st); st.Close() })
	defer close(hold)
	st := open(t, host)
	defer st.Close()
	st.SetDeadline(time.Now().Add(20 * time.Millisecond))
	n, err := st.Write(make([]byte, 1<<20))
	if !errors.Is(err, os.ErrDeadlineExceeded) || n != FirstWindow {
		t.Errorf("write: %d, %v", n, err)
	}
	if _, err := st.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read: %v", err)
	}
	st.SetDeadline(time.Time{})
	if err := st.CloseWrite(); err != nil {
		t.Error(err)
	}
}

func TestAThousandStreamsKeepTheirBytesApart(t *testing.T) {
	const streams = 1000
	host, guest := sessionPair(t, echo)
	var wg sync.WaitGroup
	for i := range streams {
		st := open(t, host)
		wg.Add(2)
		data := make([]byte, 20_000+i)
		rand.NewChaCha8([32]byte{byte(i), byte(i >> 8)}).Read(data)
		go func() {
			defer wg.Done()
			for p := data; len(p) > 0; {
				n := min(len(p), 777)
				if _, err := st.Write(p[:n]); err != nil {
					t.Error(err)
					return
				}
				p = p[n:]
			}
			st.CloseWrite()
		}()
		go func() {
			defer wg.Done()
			defer st.Close()
			h := sha256.New()
			io.Copy(h, st)
			if want := sha256.Sum256(data); !bytes.Equal(h.Sum(nil), want[:]) {
				t.Errorf("stream %d: other bytes came back", i)
			}
		}()
	}
	wg.Wait()
	within(t, time.Second, "no stream left", func() bool { return host.Streams() == 0 && guest.Streams() == 0 })
}

func TestStreamsAreLimited(t *testing.T) {
	hold := make(chan struct{})
	host, _ := sessionPair(t, func(st *Stream) { <-hold; st.Close() })
	defer close(hold)
	all := make([]*Stream, MaxStreams)
	for i := range all {
		all[i] = open(t, host)
		all[i].Write([]byte("x"))
	}
	if _, err := host.Open(); !errors.Is(err, ErrTooMany) {
		t.Errorf("one stream more: %v", err)
	}
	all[7].Reset(Cancelled)
	within(t, time.Second, "room for one more", func() bool {
		st, err := host.Open()
		if err == nil {
			st.Close()
		}
		return err == nil
	})
}

func TestBulkDoesNotHoldUpInteractiveTraffic(t *testing.T) {
	host, _ := sessionPair(t, echo)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		st := open(t, host)
		wg.Add(2)
		go func() {
			defer wg.Done()
			buf := make([]byte, 1<<20)
			for {
				select {
				case <-stop:
					st.CloseWrite()
					return
				default:
					st.Write(buf)
				}
			}
		}()
		go func() { defer wg.Done(); io.Copy(io.Discard, st); st.Close() }()
	}
	st := open(t, host)
	worst := time.Duration(0)
	var total time.Duration
	b := make([]byte, 1)
	const keys = 200
	for range keys {
		begin := time.Now()
		st.Write([]byte("k"))
		if _, err := io.ReadFull(st, b); err != nil {
			t.Fatal(err)
		}
		took := time.Since(begin)
		total += took
		worst = max(worst, took)
	}
	close(stop)
	wg.Wait()
	st.Close()
	t.Logf("a key beside bulk: mean %v, worst %v", total/keys, worst)
	if total/keys > time.Second {
		t.Errorf("a key took %v on average", total/keys)
	}
}

func TestTheLossOfTheLinkEndsEveryStream(t *testing.T) {
	host, guest := sessionPair(t, echo)
	st := open(t, host)
	st.Write([]byte("hello"))
	io.ReadFull(st, make([]byte, 5))
	guest.Close()
	if _, err := st.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("read: %v", err)
	}
	if _, err := st.Write(make([]byte, 1<<20)); err == nil {
		t.Error("write went on")
	}
	<-host.Done()
	if _, err := host.Open(); err == nil {
		t.Error("opened a stream on a dead session")
	}
	st.Close()
}

func BenchmarkThroughput(b *testing.B) {
	for _, way := range []string{"to guest", "from guest"} {
		b.Run(way, func(b *testing.B) {
			buf := make([]byte, 256<<10)
			done := make(chan struct{})
			host, _ := sessionPair(b, func(st *Stream) {
				defer st.Close()
				if way == "to guest" {
					io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{st}, make([]byte, 64<<10))
					close(done)
					return
				}
				for range b.N {
					st.Write(buf)
				}
			})
			b.SetBytes(int64(len(buf)))
			st := open(b, host)
			defer st.Close()
			if way == "from guest" {
				st.Write([]byte("x"))
				io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{st}, make([]byte, 64<<10))
				return
			}
			for range b.N {
				st.Write(buf)
			}
			st.CloseWrite()
			<-done
		})
	}
}

func BenchmarkRoundTrip(b *testing.B) {
	host, _ := sessionPair(b, echo)
	st := open(b, host)
	defer st.Close()
	buf := make([]byte, 1)
	for range b.N {
		st.Write(buf)
		io.ReadFull(st, buf)
	}
}
