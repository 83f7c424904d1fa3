package test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
)

// desk is a person at a terminal in front of one daemon.
type desk struct {
	t   *testing.T
	env []string
}

func newDesk(t *testing.T, config string) *desk {
	t.Helper()
	h, err := home(config)
	if err != nil {
		t.Fatal(err)
	}
	d := &desk{t: t, env: []string{"BANGER_HOME=" + h, "HOME=" + t.TempDir(), "PATH=" + bin + ":" + os.Getenv("PATH"), "LANG=C.UTF-8", "TERM=xterm"}}
	t.Cleanup(func() {
		if left := sweep(h, d.env); left != "" {
			t.Error(left)
		}
		os.RemoveAll(h)
	})
	return d
}

// banger runs a command without a terminal and gives its standard output.
func (d *desk) banger(args ...string) string {
	d.t.Helper()
	cmd := exec.Command(filepath.Join(bin, "banger"), args...)
	cmd.Env = d.env
	var errOut bytes.Buffer
	cmd.Stderr = &errOut
	out, err := cmd.Output()
	if err != nil {
		d.t.Fatalf("banger %v: %v\n%s", args, err, errOut.String())
	}
	return string(out)
}

// sitting is a command on a terminal.
type sitting struct {
	t    *testing.T
	cmd  *exec.Cmd
	tty  *os.File // the terminal's other side
	slot *os.File // the terminal itself, to look at its modes
	mu   sync.Mutex
	out  []byte
	done chan struct{}
}

// sit starts a command on a terminal of 24 lines and 80 columns.
func (d *desk) sit(args ...string) *sitting {
	d.t.Helper()
	p, tty, err := pty.Open()
	if err != nil {
		d.t.Fatal(err)
	}
	p = pollable(d.t, p)
	s := &sitting{t: d.t, tty: p, slot: tty, done: make(chan struct{}), cmd: exec.Command(filepath.Join(bin, "banger"), args...)}
	s.resize(24, 80)
	s.cmd.Env, s.cmd.Stdin, s.cmd.Stdout, s.cmd.Stderr = d.env, tty, tty, tty
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := s.cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	go func() {
		defer close(s.done)
		b := make([]byte, 4096)
		for {
			n, err := p.Read(b)
			s.mu.Lock()
			s.out = append(s.out, b[:n]...)
			s.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	d.t.Cleanup(func() { s.cmd.Process.Kill(); p.Close(); tty.Close(); <-s.done })
	return s
}

// pollable is the same file in a way that Close ends a Read that is under way,
// as closing a window does.
func pollable(t *testing.T, f *os.File) *os.File {
	t.Helper()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if err := unix.SetNonblock(fd, true); err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), "terminal")
}

func (s *sitting) resize(rows, cols uint16) {
	s.t.Helper()
	c, err := s.tty.SyscallConn()
	if err == nil {
		cerr := c.Control(func(fd uintptr) {
			err = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols})
		})
		if err == nil {
			err = cerr
		}
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *sitting) seen() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return string(s.out)
}

// until waits for text on the terminal.
func (s *sitting) until(text string) {
	s.t.Helper()
	if !await(20*time.Second, func() bool { return strings.Contains(s.seen(), text) }) {
		s.t.Fatalf("%q never came; on the terminal:\n%s", text, s.seen())
	}
}

func (s *sitting) keys(text string) {
	s.t.Helper()
	if _, err := s.tty.WriteString(text); err != nil {
		s.t.Fatal(err)
	}
}

// ends waits for the end of the command and checks its status.
func (s *sitting) ends(status int) {
	s.t.Helper()
	ended := make(chan struct{})
	go func() { defer close(ended); _ = s.cmd.Wait() }()
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		s.t.Fatalf("did not end; on the terminal:\n%s", s.seen())
	}
	if got := s.cmd.ProcessState.ExitCode(); got != status {
		s.t.Errorf("status %d, want %d; on the terminal:\n%s", got, status, s.seen())
	}
}

// cooked says whether the terminal echoes and makes lines.
func (s *sitting) cooked() bool {
	m, err := unix.IoctlGetTermios(int(s.slot.Fd()), unix.TCGETS)
	return err == nil && m.Lflag&unix.ECHO != 0 && m.Lflag&unix.ICANON != 0
}

const hosted = "hypervisor = \"hosted\"\n"

func TestAShellOnATerminal(t *testing.T) {
	d := newDesk(t, hosted)
	d.banger("run", "--name", "a", "-q", "--", "true")
	s := d.sit("exec", "a", "--", "sh")
	if !await(10*time.Second, func() bool { return !s.cooked() }) {
		t.Fatal("the terminal never became raw")
	}
	s.keys("stty size; echo m$((20+22))\r")
	s.until("24 80")
	s.until("m42")

	// a new size arrives
	s.resize(50, 132)
	if !await(10*time.Second, func() bool {
		s.keys("stty size\r")
		time.Sleep(100 * time.Millisecond)
		return strings.Contains(s.seen(), "50 132")
	}) {
		t.Errorf("the new size never arrived:\n%s", s.seen())
	}

	// Ctrl-C is the guest's
	s.keys("sleep 60\r")
	time.Sleep(300 * time.Millisecond)
	s.keys("\x03")
	s.keys("echo after$((1+1))\r")
	s.until("after2")

	s.keys("exit 9\r")
	s.ends(9)
	if !s.cooked() {
		t.Error("the terminal was not given back")
	}
}

func TestTheTerminalIsGivenBackWhateverHappens(t *testing.T) {
	d := newDesk(t, hosted)
	d.banger("run", "--name", "a", "-q", "--", "true")
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT} {
		s := d.sit("exec", "a", "--", "sleep", "60")
		if !await(10*time.Second, func() bool { return !s.cooked() }) {
			t.Fatal("the terminal never became raw")
		}
		if err := s.cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		s.ends(128 + int(sig))
		if !s.cooked() {
			t.Errorf("signal %d: the terminal was not given back", sig)
		}
	}
}

func TestLosingTheTerminalLeavesTheVMUnlessRM(t *testing.T) {
	d := newDesk(t, hosted)
	for _, c := range []struct {
		name string
		args []string
		left bool
	}{
		{"stays", []string{"run", "--name", "stays", "--", "sh"}, true},
		{"goes", []string{"run", "--rm", "--name", "goes", "--", "sh"}, false},
	} {
		s := d.sit(c.args...)
		s.keys("echo u$((1+1))p\r")
		s.until("u2p")
		s.slot.Close()
		s.tty.Close() // the window is closed
		s.ends(129)
		gone := func() bool { return !strings.Contains(d.banger("ps", "-aq"), c.name) }
		if c.left && gone() {
			t.Errorf("%s went with its terminal", c.name)
		}
		if !c.left && !await(10*time.Second, gone) {
			t.Errorf("%s stayed although --rm was given", c.name)
		}
	}
}

func TestLongWorkIsDrawnAndThenGoneFromTheScreen(t *testing.T) {
	d := newDesk(t, hosted)
	s := d.sit("run", "-v", "--rm", "--name", "a", "--", "echo", "do"+"ne")
	s.ends(0)
	s.until("done")
	if !strings.Contains(s.seen(), "✓") {
		t.Errorf("no stage was shown:\n%s", s.seen())
	}
}

func TestADestructiveVerbAsksOnce(t *testing.T) {
	d := newDesk(t, hosted)
	d.banger("vm", "create", "--name", "web", "--no-start")
	s := d.sit("rm", "web")
	s.until(`delete "web" with its disks? [y/N] `)
	s.keys("n\r")
	s.ends(130)
	s = d.sit("rm", "web")
	s.until("[y/N] ")
	s.keys("y\r")
	s.ends(0)
	s.until("web deleted")
	d.banger("vm", "create", "--name", "db", "--no-start")
	s = d.sit("rm", "-y", "db")
	s.ends(0)
	if strings.Contains(s.seen(), "[y/N]") {
		t.Error("asked in spite of -y")
	}
}

// What a guest says is shown and cannot drive the terminal.
func TestAGuestCannotDriveTheTerminal(t *testing.T) {
	d := newDesk(t, hosted)
	d.banger("run", "--name", "a", "-q", "--", "true")
	evil := "\x1b]0;title\a\x1b[2J\r\u202e"
	for _, args := range [][]string{
		{"exec", "a", "--", "no" + evil + "such"},
		{"vm", "show", "x" + evil},
		{"run", "d" + evil},
		{"run", "--name", "n" + evil, "--", "true"},
		{"vm", "create", "--label", "l" + evil},
		{"image", "show", "i" + evil},
	} {
		s := d.sit(args...)
		_ = s.cmd.Wait()
		await(5*time.Second, func() bool { return strings.Contains(s.seen(), "error:") })
		seen := s.seen()
		for _, bad := range []string{"\x1b]", "\x1b[2J", "\a", "\u202e", "title\r"} {
			if strings.Contains(seen, bad) {
				t.Errorf("%q: %q reached the terminal: %q", args[:2], bad, seen)
			}
		}
		if !strings.Contains(seen, "error:") {
			t.Errorf("%q said only %q", args[:2], seen)
		}
	}
}
