package agent_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/banger-dev/banger/internal/agent"
	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/guest"
	"github.com/banger-dev/banger/internal/guest/guesttest"
	"github.com/banger-dev/banger/internal/guest/wire"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func dial(t testing.TB, g *guesttest.Guest) *guest.Client {
	t.Helper()
	c, err := guest.Dial(t.Context(), g.Endpoint, g.Token, guest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// result is all that a command gave.
type result struct {
	stdout, stderr []byte
	exit           *wire.Exit
	acked          uint64
}

// drain receives until the end, acknowledging everything.
func drain(p *guest.Process) (r result, err error) {
	for {
		out, err := p.Recv()
		if errors.Is(err, io.EOF) {
			return r, nil
		}
		if err != nil {
			return r, err
		}
		r.add(p, out)
	}
}

func (r *result) add(p *guest.Process, out wire.ExecOutput) {
	switch {
	case out.Stdout != nil:
		r.stdout = append(r.stdout, out.Stdout.Data...)
		end := out.Stdout.Off + uint64(len(out.Stdout.Data))
		p.Send(wire.ExecInput{AckStdout: &end})
	case out.Stderr != nil:
		r.stderr = append(r.stderr, out.Stderr.Data...)
		end := out.Stderr.Off + uint64(len(out.Stderr.Data))
		p.Send(wire.ExecInput{AckStderr: &end})
	case out.AckStdin != nil:
		r.acked = *out.AckStdin
	case out.Exit != nil:
		r.exit = out.Exit
		p.Send(wire.ExecInput{End: "done"})
	}
}

func run(t testing.TB, c *guest.Client, req wire.ExecRequest) result {
	t.Helper()
	p, err := c.Exec(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	r, err := drain(p)
	if err != nil {
		t.Fatal(err)
	}
	if r.exit == nil {
		t.Fatal("no exit status")
	}
	return r
}

func sh(script string, args ...string) wire.ExecRequest {
	return wire.ExecRequest{Argv: append([]string{"sh", "-c", script, "sh"}, args...)}
}

func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); <-tick.C {
		if f() {
			return
		}
	}
	t.Fatalf("never: %s", what)
}

func TestStatusesAndUnmixedOutput(t *testing.T) {
	g := guesttest.Unix(t)
	c := dial(t, g)
	dir := t.TempDir()
	os.WriteFile(filepath.Join(dir, "plain"), []byte("echo from a script with no first line: $1\n"), 0o755)
	os.WriteFile(filepath.Join(dir, "data"), nil, 0o644)
	os.WriteFile(filepath.Join(dir, "foreign"), []byte("\x7fELF\x02\x01\x01\x00 of another machine"), 0o755)
	for name, x := range map[string]struct {
		req            wire.ExecRequest
		code           uint32
		stdout, stderr string
		failure        string
		signal         string
	}{
		"true":               {req: wire.ExecRequest{Argv: []string{"true"}}},
		"status":             {req: sh("exit 42"), code: 42},
		"both outputs":       {req: sh("echo out; echo err >&2"), stdout: "out\n", stderr: "err\n"},
		"arguments":          {req: sh(`printf '<%s>' "$@"`, "", "a b", `q"'$`, "*", "\xff"), stdout: "<><a b><q\"'$><*><\xff>"},
		"signal":             {req: sh("kill -9 $$"), code: 137, signal: "KILL"},
		"not found":          {req: wire.ExecRequest{Argv: []string{"no-such-command"}}, code: 127, failure: "not_found"},
		"no such file":       {req: wire.ExecRequest{Argv: []string{"/no/such/file"}}, code: 127, failure: "not_found"},
		"cannot run":         {req: wire.ExecRequest{Argv: []string{"./data"}, Cwd: dir}, code: 126, failure: "cannot_run"},
		"a directory":        {req: wire.ExecRequest{Argv: []string{"/tmp"}}, code: 126, failure: "cannot_run"},
		"no directory":       {req: wire.ExecRequest{Argv: []string{"true"}, Cwd: "/no/such"}, code: 126, failure: "cannot_run"},
		"no user":            {req: wire.ExecRequest{Argv: []string{"true"}, User: "nobody-at-all"}, code: 126, failure: "cannot_run"},
		"script without #!":  {req: wire.ExecRequest{Argv: []string{"./plain", "x"}, Cwd: dir}, stdout: "from a script with no first line: x\n"},
		"cwd":                {req: wire.ExecRequest{Argv: []string{"pwd"}, Cwd: dir}, stdout: dir + "\n"},
		"environment":        {req: wire.ExecRequest{Argv: []string{"sh", "-c", `echo "$A,$LANG"`}, Env: []wire.KV{{Key: "A", Value: "x=y z"}}}, stdout: "x=y z,C.UTF-8\n"},
		"stdin is /dev/null": {req: wire.ExecRequest{Argv: []string{"cat"}}},
		"a foreign program":  {req: wire.ExecRequest{Argv: []string{"./foreign"}, Cwd: dir}, code: 126, failure: "cannot_run"},
		"empty name":         {req: wire.ExecRequest{Argv: []string{""}}, code: 127, failure: "not_found"},
	} {
		t.Run(name, func(t *testing.T) {
			r := run(t, c, x.req)
			if r.exit.Code != x.code || r.exit.Failure != x.failure || r.exit.Signal != x.signal {
				t.Errorf("exit %+v", r.exit)
			}
			if string(r.stdout) != x.stdout || string(r.stderr) != x.stderr {
				t.Errorf("stdout %q, stderr %q", r.stdout, r.stderr)
			}
		})
	}
	eventually(t, "every command is forgotten", func() bool { return g.Server.Execs() == 0 })
}

// send writes all of data to a command's standard input and ends it.
func send(t testing.TB, p *guest.Process, data []byte) {
	off := uint64(0)
	for len(data) > 0 {
		n := min(len(data), 10_000)
		if err := p.Send(wire.ExecInput{Stdin: &wire.Chunk{Off: off, Data: data[:n]}}); err != nil {
			t.Error(err)
			return
		}
		off += uint64(n)
		data = data[n:]
	}
	p.Send(wire.ExecInput{CloseAt: &off})
}

func TestMuchThroughStdinAndStdout(t *testing.T) {
	c := dial(t, guesttest.Unix(t))
	data := bytes.Repeat([]byte("0123456789abcdef"), 5<<16)
	p, err := c.Exec(t.Context(), wire.ExecRequest{Argv: []string{"cat"}, Stdin: true})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	go send(t, p, data)
	r, err := drain(p)
	if err != nil || !bytes.Equal(r.stdout, data) || r.acked != uint64(len(data)) {
		t.Errorf("%d bytes came back, %d taken, %v", len(r.stdout), r.acked, err)
	}
}

func TestInputToACommandThatReadsNoneIsDropped(t *testing.T) {
	c := dial(t, guesttest.Unix(t))
	p, err := c.Exec(t.Context(), wire.ExecRequest{Argv: []string{"true"}, Stdin: true})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	go p.Send(wire.ExecInput{Stdin: &wire.Chunk{Data: make([]byte, 200_000)}})
	if r, err := drain(p); err != nil || r.exit == nil || r.exit.Code != 0 {
		t.Errorf("%+v %v", r.exit, err)
	}
}

func TestSignalsReachTheWholeGroup(t *testing.T) {
	c := dial(t, guesttest.Unix(t))
	p, err := c.Exec(t.Context(), sh("trap 'echo got it; exit 3' INT; echo ready; sleep 100 & wait"))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	var r result
	for !bytes.Contains(r.stdout, []byte("ready")) {
		out, err := p.Recv()
		if err != nil {
			t.Fatal(err)
		}
		r.add(p, out)
	}
	p.Send(wire.ExecInput{Signal: "INT"})
	rest, err := drain(p)
	if err != nil || rest.exit.Code != 3 || string(rest.stdout) != "got it\n" {
		t.Errorf("%+v %q %v", rest.exit, rest.stdout, err)
	}
}

func TestATimeoutIs124(t *testing.T) {
	c := dial(t, guesttest.Unix(t))
	req := sh("trap 'echo bye; exit 0' TERM; sleep 100 & wait")
	req.TimeoutMS = 100
	if r := run(t, c, req); r.exit.Code != 124 || !r.exit.TimedOut || string(r.stdout) != "bye\n" {
		t.Errorf("%+v %q", r.exit, r.stdout)
	}
}

func TestATerminal(t *testing.T) {
	c := dial(t, guesttest.Unix(t))
	p, err := c.Exec(t.Context(), wire.ExecRequest{
		Argv: []string{"sh", "-c", `test -t 0 && test -t 1 && stty size; read x; stty size; echo "<$x $TERM>"; exit 5`},
		TTY:  true, Stdin: true, Rows: 33, Cols: 77, Env: []wire.KV{{Key: "TERM", Value: "vt100"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	var r result
	for !bytes.Contains(r.stdout, []byte("33 77")) {
		out, err := p.Recv()
		if err != nil {
			t.Fatal(err)
		}
		r.add(p, out)
	}
	p.Send(wire.ExecInput{Resize: &wire.Size{Rows: 44, Cols: 99}})
	p.Send(wire.ExecInput{Stdin: &wire.Chunk{Data: []byte("typed\n")}})
	rest, err := drain(p)
	got := string(r.stdout) + string(rest.stdout)
	if err != nil || rest.exit.Code != 5 || !strings.Contains(got, "44 99") || !strings.Contains(got, "<typed vt100>") {
		t.Errorf("%+v %q %v", rest.exit, got, err)
	}
}

func TestALoginShell(t *testing.T) {
	c := dial(t, guesttest.Unix(t))
	p, err := c.Exec(t.Context(), wire.ExecRequest{Shell: true, Stdin: true, Env: []wire.KV{{Key: "HOME", Value: t.TempDir()}}})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	go send(t, p, []byte("echo \"$0\"; exit 4\n"))
	if r, err := drain(p); err != nil || !strings.Contains(string(r.stdout), "-") || r.exit.Code != 4 {
		t.Errorf("%q %q %+v %v", r.stdout, r.stderr, r.exit, err)
	}
}

func TestASignalGoesToTheTerminalsForeground(t *testing.T) {
	c := dial(t, guesttest.Unix(t))
	p, err := c.Exec(t.Context(), wire.ExecRequest{Argv: []string{"bash", "--norc", "-ic", `sh -c 'trap "echo inner; exit 1" INT; echo up; sleep 100 & wait'; echo outer`}, TTY: true, Stdin: true})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	var r result
	for !bytes.Contains(r.stdout, []byte("up\r\n")) {
		out, err := p.Recv()
		if err != nil {
			t.Fatal(err)
		}
		r.add(p, out)
	}
	p.Send(wire.ExecInput{Signal: "INT"})
	rest, err := drain(p)
	if err != nil || !strings.Contains(string(rest.stdout), "inner") {
		t.Errorf("%q %v", rest.stdout, err)
	}
}

func TestABackgroundChildHoldsNobodyUp(t *testing.T) {
	c := dial(t, guesttest.Unix(t))
	begin := time.Now()
	r := run(t, c, sh("sleep 30 & echo started $!"))
	if took := time.Since(begin); took > 5*time.Second || r.exit.Code != 0 {
		t.Errorf("took %v: %+v", took, r.exit)
	}
	var pid int
	fmt.Sscanf(string(r.stdout), "started %d", &pid)
	if err := syscall.Kill(pid, 0); err != nil {
		t.Errorf("the child is gone: %v", err)
	}
	syscall.Kill(pid, syscall.SIGKILL)
}

func TestAllOutputComesBeforeTheEnd(t *testing.T) {
	c := dial(t, guesttest.Unix(t))
	r := run(t, c, sh("head -c 3000000 /dev/zero; head -c 70000 /dev/zero >&2; exit 9"))
	if len(r.stdout) != 3_000_000 || len(r.stderr) != 70_000 || r.exit.Code != 9 {
		t.Errorf("%d, %d, %+v", len(r.stdout), len(r.stderr), r.exit)
	}
}

func TestAReaderComesBackAndMissesNothing(t *testing.T) {
	g := guesttest.Unix(t)
	first := dial(t, g)
	req := sh("n=0; while read x; do echo $x; echo $x >&2; done; exit 6")
	req.ID, req.Stdin, req.OrphanMS = "long", true, 60_000
	current, err := first.Exec(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	var feeding sync.WaitGroup
	defer feeding.Wait()
	var lines bytes.Buffer
	for i := range 20_000 {
		fmt.Fprintln(&lines, i)
	}
	input := lines.Bytes()
	var r result
	// Acknowledged is what we promise never to ask for again.
	for {
		from, p := r.acked, current
		feeding.Go(func() {
			for off := from; off < uint64(len(input)); {
				n := min(uint64(len(input))-off, 1000)
				if p.Send(wire.ExecInput{Stdin: &wire.Chunk{Off: off, Data: input[off : off+n]}}) != nil {
					return
				}
				off += n
			}
			end := uint64(len(input))
			p.Send(wire.ExecInput{CloseAt: &end})
		})
		var err error
		for n := 0; n < 40 && err == nil; n++ {
			var out wire.ExecOutput
			out, err = p.Recv()
			if err == nil {
				if out.Started != nil {
					r.acked = out.Started.StdinOff
				}
				r.add(p, out)
			}
		}
		if r.exit != nil {
			p.Close()
			break
		}
		first.Close()
		p.Close()
		first = dial(t, g)
		again, err := first.Attach(t.Context(), wire.AttachRequest{ID: "long", StdoutOff: uint64(len(r.stdout)), StderrOff: uint64(len(r.stderr))})
		if err != nil {
			t.Fatal(err)
		}
		current = again
	}
	if !bytes.Equal(r.stdout, input) || !bytes.Equal(r.stderr, input) || r.exit.Code != 6 {
		t.Errorf("stdout %d, stderr %d of %d bytes, %+v", len(r.stdout), len(r.stderr), len(input), r.exit)
	}
	eventually(t, "the command is forgotten", func() bool { return g.Server.Execs() == 0 })
}

func TestOutputWaitsForAReaderAndTheStatusToo(t *testing.T) {
	g := guesttest.Unix(t)
	c := dial(t, g)
	req := sh("head -c 3000000 /dev/zero; exit 8")
	req.ID, req.OrphanMS = "blocked", 60_000
	p, err := c.Exec(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	p.Recv() // started
	p.Close()
	p, err = c.Attach(t.Context(), wire.AttachRequest{ID: "blocked"})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	r, err := drain(p)
	if err != nil || len(r.stdout) != 3_000_000 || r.exit.Code != 8 {
		t.Errorf("%d bytes, %+v, %v", len(r.stdout), r.exit, err)
	}
	if p, err := c.Attach(t.Context(), wire.AttachRequest{ID: "nobody"}); err == nil {
		if _, err := p.Recv(); errs.KindOf(err) != errs.NotFound {
			t.Errorf("attach to nothing: %v", err)
		}
		p.Close()
	}
}

func TestAnOrphanEnds(t *testing.T) {
	g := guesttest.Unix(t)
	c := dial(t, g)
	for name, end := range map[string]string{"left": "", "hung up": "hup"} {
		req := sh("echo $$; exec sleep 1000")
		if end == "hup" {
			req.OrphanMS = 1 << 30
		}
		p, err := c.Exec(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		var r result
		for len(r.stdout) == 0 {
			out, err := p.Recv()
			if err != nil {
				t.Fatal(err)
			}
			r.add(p, out)
		}
		var pid int
		fmt.Sscan(string(r.stdout), &pid)
		if end != "" {
			p.Send(wire.ExecInput{End: end})
		}
		p.Close()
		eventually(t, name+": the process is gone", func() bool { return syscall.Kill(pid, 0) != nil })
		eventually(t, name+": the command is forgotten", func() bool { return g.Server.Execs() == 0 })
	}
}

func TestASecondReaderTakesOver(t *testing.T) {
	c := dial(t, guesttest.Unix(t))
	req := sh("read x; echo $x")
	req.ID, req.Stdin = "shared", true
	p1, err := c.Exec(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	defer p1.Close()
	if _, err := p1.Recv(); err != nil {
		t.Fatal(err)
	}
	p2, err := c.Attach(t.Context(), wire.AttachRequest{ID: "shared"})
	if err != nil {
		t.Fatal(err)
	}
	defer p2.Close()
	if _, err := p1.Recv(); errs.CodeOf(err) != "reader_replaced" {
		t.Errorf("first reader: %v", err)
	}
	p2.Send(wire.ExecInput{Stdin: &wire.Chunk{Data: []byte("hi\n")}})
	if r, err := drain(p2); err != nil || string(r.stdout) != "hi\n" {
		t.Errorf("second reader: %q %v", r.stdout, err)
	}
}

func TestAnIDIsTakenOnce(t *testing.T) {
	c := dial(t, guesttest.Unix(t))
	req := wire.ExecRequest{ID: "one", Argv: []string{"cat"}, Stdin: true}
	p, err := c.Exec(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	p.Recv()
	other := req
	other.Argv = []string{"cat", "-"}
	q, err := c.Exec(t.Context(), other)
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	if _, err := q.Recv(); errs.CodeOf(err) != "command_exists" {
		t.Error(err)
	}
	// The very same once more is a host that lost its link too early.
	same, err := c.Exec(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	defer same.Close()
	send(t, same, []byte("once"))
	if r, err := drain(same); err != nil || string(r.stdout) != "once" {
		t.Errorf("%q %v", r.stdout, err)
	}
}

func TestCommandsThatNobodyWasDoneWithMakeRoom(t *testing.T) {
	const room = 20
	g := guesttest.Unix(t, func(o *agent.Options) { o.MaxExecs = room })
	c := dial(t, g)
	for range 2*room + 5 {
		p, err := c.Exec(t.Context(), wire.ExecRequest{Argv: []string{"/bin/true"}, OrphanMS: 1 << 30})
		if err != nil {
			t.Fatal(err)
		}
		for err == nil {
			var out wire.ExecOutput
			if out, err = p.Recv(); out.Exit != nil && out.Exit.Code != 0 {
				t.Fatalf("%+v", out.Exit)
			}
		}
		if !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		p.Close()
	}
	if n := g.Server.Execs(); n > room {
		t.Errorf("%d commands are kept", n)
	}
}

// A command that turns little input into much output must not wait for acks
// that wait for it.
func TestAcksPassInputThatWaits(t *testing.T) {
	c := dial(t, guesttest.Unix(t))
	p, err := c.Exec(t.Context(), wire.ExecRequest{Argv: []string{"sh", "-c", "head -c 5000000 /dev/zero; cat"}, Stdin: true})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	send(t, p, make([]byte, wire.StdinWindow)) // before anything is received
	if r, err := drain(p); err != nil || len(r.stdout) != 5_000_000+wire.StdinWindow {
		t.Errorf("%d bytes, %v", len(r.stdout), err)
	}
}

func BenchmarkExecTrue(b *testing.B) {
	c := dial(b, guesttest.Unix(b))
	for range b.N {
		run(b, c, wire.ExecRequest{Argv: []string{"/bin/true"}})
	}
}

func threads(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	var n int
	_, rest, _ := strings.Cut(string(b), "Threads:")
	fmt.Sscan(rest, &n)
	return n
}

func TestManyCommandsAtOnceTakeNoThreadEach(t *testing.T) {
	g := guesttest.Unix(t)
	c := dial(t, g)
	before := threads(t)
	const many = 200
	all := make([]*guest.Process, many)
	for i := range all {
		p, err := c.Exec(t.Context(), wire.ExecRequest{Argv: []string{"cat"}, Stdin: true})
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		if _, err := p.Recv(); err != nil {
			t.Fatal(err)
		}
		all[i] = p
	}
	if n := threads(t) - before; n > 50 {
		t.Errorf("%d commands take %d threads", many, n)
	}
	for i, p := range all {
		send(t, p, fmt.Appendf(nil, "command %d", i))
	}
	for i, p := range all {
		if r, err := drain(p); err != nil || string(r.stdout) != fmt.Sprintf("command %d", i) {
			t.Errorf("command %d: %q %v", i, r.stdout, err)
		}
	}
}
