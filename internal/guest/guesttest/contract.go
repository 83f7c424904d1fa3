package guesttest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/guest"
	"github.com/banger-dev/banger/internal/guest/wire"
	"github.com/banger-dev/banger/internal/hypervisor"
)

// Contract is what the suite needs of an endpoint's guest: cat, sh, head and
// sleep in it.
type Contract struct {
	Endpoint hypervisor.Endpoint
	Token    []byte
	// Restarts is how often the host's side is cut off in mid-stream; 0
	// means 30.
	Restarts int
	// Streams is how many run at once; 0 means 1000.
	Streams int
	// Key bounds the mean time of a round trip beside bulk; 0 means 50 ms.
	Key time.Duration
}

// Run runs the whole suite: what a Client promises over any kind of endpoint.
func (c Contract) Run(t *testing.T) {
	if c.Restarts == 0 {
		c.Restarts = 30
	}
	if c.Streams == 0 {
		c.Streams = 1000
	}
	if c.Key == 0 {
		c.Key = 50 * time.Millisecond
	}
	for _, x := range []struct {
		name string
		f    func(*testing.T)
	}{
		{"half close", c.halfClose},
		{"big messages", c.bigMessages},
		{"cancel", c.cancel},
		{"many streams", c.manyStreams},
		{"bulk beside interactive", c.interactive},
		{"hosts cut off anywhere", c.cutOff},
		{"a command survives its hosts", c.survives},
	} {
		t.Run(x.name, x.f)
	}
}

func (c Contract) dial(t *testing.T) *guest.Client {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cl, err := guest.Dial(ctx, c.Endpoint, c.Token, guest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cl.Close() })
	return cl
}

// Run runs a command to its end and gives its output and exit.
func Run(ctx context.Context, c *guest.Client, req wire.ExecRequest, stdin []byte) (stdout, stderr []byte, exit *wire.Exit, err error) {
	req.Stdin = stdin != nil
	p, err := c.Exec(ctx, req)
	if err != nil {
		return nil, nil, nil, err
	}
	defer p.Close()
	var feeding sync.WaitGroup
	defer feeding.Wait()
	if stdin != nil {
		feeding.Go(func() { Feed(p, stdin, 0) })
	}
	var f Follower
	for {
		out, err := p.Recv()
		if errors.Is(err, io.EOF) {
			return f.Stdout, f.Stderr, f.Exit, nil
		}
		if err != nil {
			return f.Stdout, f.Stderr, f.Exit, err
		}
		f.Take(p, out)
	}
}

// Feed sends standard input from an offset on, and its end.
func Feed(p *guest.Process, stdin []byte, from uint64) {
	for off := from; off < uint64(len(stdin)); {
		n := min(uint64(len(stdin))-off, 16<<10)
		if p.Send(wire.ExecInput{Stdin: &wire.Chunk{Off: off, Data: stdin[off : off+n]}}) != nil {
			return
		}
		off += n
	}
	end := uint64(len(stdin))
	// A command that is gone needs no end of its input.
	_ = p.Send(wire.ExecInput{CloseAt: &end})
}

// Follower collects what a command gives, over any number of attachments.
type Follower struct {
	Stdout, Stderr []byte
	StdinOff       uint64
	Exit           *wire.Exit
}

// Take adds one output and acknowledges it.
func (f *Follower) Take(p *guest.Process, out wire.ExecOutput) {
	var in wire.ExecInput
	switch {
	case out.Started != nil:
		f.StdinOff = out.Started.StdinOff
		return
	case out.AckStdin != nil:
		f.StdinOff = *out.AckStdin
		return
	case out.Stdout != nil:
		f.Stdout = append(f.Stdout, out.Stdout.Data...)
		end := uint64(len(f.Stdout))
		in.AckStdout = &end
	case out.Stderr != nil:
		f.Stderr = append(f.Stderr, out.Stderr.Data...)
		end := uint64(len(f.Stderr))
		in.AckStderr = &end
	case out.Exit != nil:
		f.Exit = out.Exit
		in.End = "done"
	}
	// A link that is gone shows at the next Recv.
	_ = p.Send(in)
}

// noise is the same for the same seed.
func noise(n int, seed byte) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

func (c Contract) halfClose(t *testing.T) {
	cl := c.dial(t)
	in := noise(300_000, 1)
	out, _, exit, err := Run(t.Context(), cl, wire.ExecRequest{Argv: []string{"sh", "-c", "cat; echo end >&2"}}, in)
	if err != nil || exit.Code != 0 || !bytes.Equal(out, in) {
		t.Errorf("%d bytes, %+v, %v", len(out), exit, err)
	}
}

func (c Contract) bigMessages(t *testing.T) {
	cl := c.dial(t)
	arg := string(bytes.Repeat([]byte("x"), 100_000))
	out, _, _, err := Run(t.Context(), cl, wire.ExecRequest{Argv: []string{"printf", "%s", arg}}, nil)
	if err != nil || string(out) != arg {
		t.Errorf("%d bytes, %v", len(out), err)
	}
	_, _, exit, err := Run(t.Context(), cl, wire.ExecRequest{Argv: []string{"true", arg, arg + arg + arg}}, nil)
	if err != nil || exit.Failure != "cannot_run" {
		t.Errorf("an argument beyond the kernel's limit: %+v, %v", exit, err)
	}
	long := make([]string, wire.MaxArgs+1)
	if _, err := cl.Exec(t.Context(), wire.ExecRequest{Argv: long}); errs.KindOf(err) != errs.Invalid {
		t.Errorf("too many arguments: %v", err)
	}
}

func (c Contract) cancel(t *testing.T) {
	cl := c.dial(t)
	ctx, cancel := context.WithCancel(t.Context())
	p, err := cl.Exec(ctx, wire.ExecRequest{Argv: []string{"sleep", "1000"}})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if _, err := p.Recv(); err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := p.Recv(); errs.KindOf(err) != errs.Cancelled {
		t.Errorf("after cancelling: %v", err)
	}
	if _, err := cl.Stats(ctx); errs.KindOf(err) != errs.Cancelled {
		t.Errorf("a call with a dead context: %v", err)
	}
	if _, err := cl.Stats(t.Context()); err != nil {
		t.Errorf("the others go on: %v", err)
	}
}

func (c Contract) manyStreams(t *testing.T) {
	cl := c.dial(t)
	var wg sync.WaitGroup
	for i := range c.Streams {
		wg.Go(func() {
			for range 3 {
				if _, err := cl.Stats(t.Context()); err != nil {
					t.Errorf("stream %d: %v", i, err)
					return
				}
			}
		})
	}
	const cats = 20
	for i := range cats {
		wg.Go(func() {
			in := noise(50_000+i, byte(i))
			out, _, exit, err := Run(t.Context(), cl, wire.ExecRequest{Argv: []string{"cat"}}, in)
			if err != nil || exit.Code != 0 || sha256.Sum256(in) != sha256.Sum256(out) {
				t.Errorf("cat %d: %d bytes, %v", i, len(out), err)
			}
		})
	}
	wg.Wait()
}

// bulkUnderWay is when a bulk transfer counts as going: with wide windows.
const bulkUnderWay = 1 << 20

func (c Contract) interactive(t *testing.T) {
	cl := c.dial(t)
	ctx, cancel := context.WithCancel(t.Context())
	var bulk sync.WaitGroup
	defer bulk.Wait()
	defer cancel()
	going := make(chan struct{})
	for range 2 {
		bulk.Go(func() {
			p, err := cl.Exec(ctx, wire.ExecRequest{Argv: []string{"cat", "/dev/zero"}})
			if err != nil {
				return
			}
			defer p.Close()
			for moved := 0; ; {
				out, err := p.Recv()
				if err != nil {
					return
				}
				if out.Stdout != nil {
					if moved < bulkUnderWay && moved+len(out.Stdout.Data) >= bulkUnderWay {
						select {
						case going <- struct{}{}:
						case <-ctx.Done():
						}
					}
					moved += len(out.Stdout.Data)
					end := out.Stdout.Off + uint64(len(out.Stdout.Data))
					p.Send(wire.ExecInput{AckStdout: &end})
				}
			}
		})
	}
	for range 2 {
		select {
		case <-going:
		case <-time.After(time.Minute):
			t.Fatal("bulk stands still")
		}
	}
	p, err := cl.Exec(t.Context(), wire.ExecRequest{Argv: []string{"cat"}, Stdin: true})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	var took []time.Duration
	for i := range uint64(50) {
		begin := time.Now()
		p.Send(wire.ExecInput{Stdin: &wire.Chunk{Off: i, Data: []byte("k")}})
		for {
			out, err := p.Recv()
			if err != nil {
				t.Fatal(err)
			}
			if out.Stdout != nil {
				break
			}
		}
		took = append(took, time.Since(begin))
	}
	slices.Sort(took)
	t.Logf("a key beside bulk: median %v, worst %v", took[len(took)/2], took[len(took)-1])
	if mid := took[len(took)/2]; mid > c.Key {
		t.Errorf("a key took %v beside bulk", mid)
	}
}

// cutOff connects hosts that die after a random number of bytes, in the middle
// of whatever, and wants the next one to be in step at once.
func (c Contract) cutOff(t *testing.T) {
	worst := time.Duration(0)
	for i := range c.Restarts {
		c.cutOnce(t, i)
		if i%5 == 0 {
			begin := time.Now()
			cl := c.dial(t)
			worst = max(worst, time.Since(begin))
			cl.Close()
		}
	}
	t.Logf("in step again after %v at most", worst)
	if worst > 10*time.Second {
		t.Errorf("in step again only after %v", worst)
	}
	cl := c.dial(t)
	in := noise(1<<20, 99)
	out, _, exit, err := Run(t.Context(), cl, wire.ExecRequest{Argv: []string{"cat"}}, in)
	if err != nil || exit.Code != 0 || !bytes.Equal(in, out) {
		t.Errorf("after %d cuts: %d bytes, %+v, %v", c.Restarts, len(out), exit, err)
	}
}

func (c Contract) cutOnce(t *testing.T, i int) {
	r := rand.New(rand.NewPCG(uint64(i), 7))
	cut := newCutter(t, c.Endpoint, r.Int64N(400_000), r.Int64N(400_000))
	defer cut.close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	go func() {
		<-cut.broken
		cancel()
	}()
	cl, err := guest.Dial(ctx, cut.endpoint, c.Token, guest.Options{})
	if err != nil {
		return
	}
	defer cl.Close()
	// Its end is whatever the cut makes of it.
	_, _, _, _ = Run(ctx, cl, wire.ExecRequest{Argv: []string{"cat"}}, noise(600_000, byte(i)))
}

// survives runs one command whose hosts die at random bytes; its input and
// output must come through whole all the same.
func (c Contract) survives(t *testing.T) {
	in := noise(2<<20, 5)
	var f Follower
	req := wire.ExecRequest{ID: fmt.Sprintf("survivor-%d", time.Now().UnixNano()), Argv: []string{"sh", "-c", "cat; head -c 100000 /dev/zero >&2; exit 17"}, Stdin: true, OrphanMS: 60_000}
	begun := false
	for i := 0; f.Exit == nil; i++ {
		if i > 60 {
			t.Fatalf("no end after %d hosts: %d bytes", i, len(f.Stdout))
		}
		r := rand.New(rand.NewPCG(uint64(i), 11))
		ep, closeCut := c.Endpoint, func() {}
		if i < 12 {
			cut := newCutter(t, c.Endpoint, 50_000+r.Int64N(300_000), 50_000+r.Int64N(300_000))
			ep, closeCut = cut.endpoint, cut.close
		}
		begun = c.oneHost(t, ep, req, in, &f, begun)
		closeCut()
	}
	if !bytes.Equal(f.Stdout, in) || len(f.Stderr) != 100_000 || f.Exit.Code != 17 {
		t.Errorf("stdout %d of %d bytes, stderr %d, %+v", len(f.Stdout), len(in), len(f.Stderr), f.Exit)
	}
}

// oneHost follows the command with one host until that dies or all is done.
func (c Contract) oneHost(t *testing.T, ep hypervisor.Endpoint, req wire.ExecRequest, in []byte, f *Follower, begun bool) bool {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	dialling, stop := context.WithTimeout(ctx, 5*time.Second)
	defer stop()
	cl, err := guest.Dial(dialling, ep, c.Token, guest.Options{})
	if err != nil {
		return begun
	}
	defer cl.Close()
	var p *guest.Process
	if begun {
		p, err = cl.Attach(ctx, wire.AttachRequest{ID: req.ID, StdoutOff: uint64(len(f.Stdout)), StderrOff: uint64(len(f.Stderr))})
	} else {
		p, err = cl.Exec(ctx, req)
	}
	if err != nil {
		return begun
	}
	var feeding sync.WaitGroup
	defer feeding.Wait()
	defer p.Close()
	for {
		out, err := p.Recv()
		switch {
		case errs.Is(err, errs.NotFound) && begun && f.Exit == nil:
			t.Fatalf("the command is gone: %v", err)
		case errs.CodeOf(err) == "command_exists":
			return true
		case err != nil:
			return begun
		}
		f.Take(p, out)
		if out.Started != nil {
			begun = true
			feeding.Go(func() { Feed(p, in, out.Started.StdinOff) })
		}
	}
}

// cutter is a connection to an endpoint that breaks after so many bytes
// either way: where exactly is up to chance.
type cutter struct {
	endpoint hypervisor.Endpoint
	l        net.Listener
	running  sync.WaitGroup
	broken   chan struct{} // closed when it has broken
}

func newCutter(t testing.TB, to hypervisor.Endpoint, up, down int64) *cutter {
	t.Helper()
	path := t.TempDir() + "/c"
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	k := &cutter{endpoint: hypervisor.Endpoint{Kind: to.Kind, Path: path, Port: to.Port}, l: l, broken: make(chan struct{})}
	k.running.Go(func() {
		defer close(k.broken)
		host, err := l.Accept()
		if err != nil {
			return
		}
		l.Close()
		defer host.Close()
		guest, err := net.Dial("unix", to.Path)
		if err != nil {
			return
		}
		var both sync.WaitGroup
		both.Go(func() {
			io.CopyN(guest, host, up)
			guest.Close()
			host.Close()
		})
		both.Go(func() {
			io.CopyN(host, guest, down)
			guest.Close()
			host.Close()
		})
		both.Wait()
	})
	return k
}

func (k *cutter) close() {
	k.l.Close()
	k.running.Wait()
}
