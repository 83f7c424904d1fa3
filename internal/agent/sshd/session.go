package sshd

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/creack/pty"
	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"
)

// drainTime bounds how long a terminal is read on after its command ended:
// what still runs in the background may keep it open for ever.
const drainTime = 200 * time.Millisecond

// session is one session channel: requests set it up, and one of shell, exec
// and subsystem starts what it is for.
type session struct {
	ch    ssh.Channel
	login login
	group string

	env  []string
	term *terminal // nil without a pty

	mu      sync.Mutex
	process *os.Process // the running command
}

// terminal is what pty-req asked for, and the pty once it is open.
type terminal struct {
	name   string
	size   pty.Winsize
	master *os.File
}

// serve handles the channel's requests until it closes.
func (s *session) serve(ctx context.Context, requests <-chan *ssh.Request) {
	var running sync.WaitGroup
	started := false
	defer running.Wait()
	defer s.hangUp()
	stop := context.AfterFunc(ctx, func() { s.ch.Close() })
	defer stop()
	for r := range requests {
		var run func()
		ok := true
		switch r.Type {
		case "shell", "exec", "subsystem":
			if run = s.program(r); run == nil || started {
				ok, run = false, nil
			}
			started = started || ok
		default:
			ok = s.request(r)
		}
		if r.WantReply {
			_ = r.Reply(ok, nil)
		}
		if run != nil {
			running.Go(run)
		}
	}
}

// request handles what changes a session's settings.
func (s *session) request(r *ssh.Request) bool {
	switch r.Type {
	case "env":
		var kv struct{ Key, Value string }
		if ssh.Unmarshal(r.Payload, &kv) != nil || !validName(kv.Key) || strings.ContainsRune(kv.Value, 0) || len(s.env) >= maxVariables {
			return false
		}
		s.env = append(s.env, kv.Key+"="+kv.Value)
		return true
	case "pty-req":
		var q struct {
			Term                      string
			Cols, Rows, Width, Height uint32
			Modes                     string
		}
		if s.term != nil || ssh.Unmarshal(r.Payload, &q) != nil || strings.ContainsRune(q.Term, 0) {
			return false
		}
		s.term = &terminal{name: q.Term, size: winsize(q.Cols, q.Rows)}
		return true
	case "window-change":
		var q struct{ Cols, Rows, Width, Height uint32 }
		if s.term == nil || ssh.Unmarshal(r.Payload, &q) != nil {
			return false
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.term.size = winsize(q.Cols, q.Rows)
		if s.term.master != nil {
			_ = pty.Setsize(s.term.master, &s.term.size)
		}
		return true
	case "signal":
		var q struct{ Name string }
		if ssh.Unmarshal(r.Payload, &q) != nil {
			return false
		}
		sig := unix.SignalNum("SIG" + q.Name)
		return sig != 0 && s.signal(sig)
	}
	return false
}

func winsize(cols, rows uint32) pty.Winsize {
	return pty.Winsize{Cols: uint16(min(cols, 4096)), Rows: uint16(min(rows, 4096))}
}

// signal reaches the command and all it started in its session.
func (s *session) signal(sig syscall.Signal) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.process != nil && syscall.Kill(-s.process.Pid, sig) == nil
}

func (s *session) hangUp() { s.signal(unix.SIGHUP) }

// program gives what a request starts, or nil.
func (s *session) program(r *ssh.Request) func() {
	var q struct{ Text string }
	if r.Type != "shell" && ssh.Unmarshal(r.Payload, &q) != nil {
		return nil
	}
	switch {
	case r.Type == "shell":
		return func() { s.run(s.shell()) }
	case r.Type == "exec":
		return func() { s.run(s.command(q.Text)) }
	case q.Text == "sftp":
		return s.sftp
	}
	return nil
}

// shell is a login shell.
func (s *session) shell() *exec.Cmd {
	cmd := &exec.Cmd{Path: s.login.shell, Args: []string{"-" + filepath.Base(s.login.shell)}}
	if s.login.shell == "" {
		cmd.Err = errors.New("this image has no shell")
	}
	return cmd
}

// command runs a command line as the client sent it. Without a shell its words
// are taken as they stand.
func (s *session) command(line string) *exec.Cmd {
	if s.login.shell != "" {
		return &exec.Cmd{Path: s.login.shell, Args: []string{filepath.Base(s.login.shell), "-c", line}}
	}
	words := strings.Fields(line)
	if len(words) == 0 {
		return &exec.Cmd{Err: errors.New("this image has no shell")}
	}
	return exec.Command(words[0], words[1:]...)
}

// sftp serves files; the server is this process.
func (s *session) sftp() {
	status := ssh.Marshal(struct{ Code uint32 }{0})
	server, err := sftp.NewServer(s.ch, sftp.WithServerWorkingDirectory(s.login.home))
	if err == nil {
		err = server.Serve()
		_ = server.Close()
	}
	if err != nil && !errors.Is(err, io.EOF) {
		status = ssh.Marshal(struct{ Code uint32 }{1})
	}
	_, _ = s.ch.SendRequest("exit-status", false, status)
	_ = s.ch.Close()
}

// run starts the command, joins it to the channel and tells how it ended.
func (s *session) run(cmd *exec.Cmd) {
	defer s.ch.Close()
	cmd.Dir = s.login.home
	cmd.Env = append(append([]string{}, s.login.env...), s.env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if s.group != "" {
		if group, err := os.Open(s.group); err == nil {
			defer group.Close()
			cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(group.Fd())
		}
	}
	start := s.startPiped
	if s.term != nil {
		start = s.startTerminal
	}
	wait, err := start(cmd)
	if err != nil {
		_, _ = io.WriteString(s.ch.Stderr(), "banger: "+err.Error()+"\r\n")
		s.exit(127)
		return
	}
	wait()
	s.tellExit(cmd.ProcessState)
}

// begin starts cmd and remembers it for signals.
func (s *session) begin(cmd *exec.Cmd) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := cmd.Start(); err != nil {
		return err
	}
	s.process = cmd.Process
	// The agent itself is the last thing to be killed for memory; what it
	// starts is not.
	_ = os.WriteFile("/proc/"+strconv.Itoa(cmd.Process.Pid)+"/oom_score_adj", []byte("0"), 0)
	return nil
}

func (s *session) end(cmd *exec.Cmd) {
	_ = cmd.Wait()
	s.mu.Lock()
	s.process = nil
	s.mu.Unlock()
}

// startPiped runs cmd with pipes. The channel ends when both outputs have, as
// with other servers.
func (s *session) startPiped(cmd *exec.Cmd) (wait func(), err error) {
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := s.begin(cmd); err != nil {
		return nil, err
	}
	return func() {
		var out sync.WaitGroup
		out.Go(func() { _, _ = io.Copy(s.ch, stdout) })
		out.Go(func() { _, _ = io.Copy(s.ch.Stderr(), stderr) })
		go func() { // ends with the channel
			_, _ = io.Copy(stdin, s.ch)
			_ = stdin.Close()
		}()
		out.Wait()
		s.end(cmd)
	}, nil
}

// startTerminal runs cmd on a pty that is its controlling terminal.
func (s *session) startTerminal(cmd *exec.Cmd) (wait func(), err error) {
	master, slave, err := pty.Open()
	if err != nil {
		return nil, err
	}
	defer slave.Close()
	s.mu.Lock()
	s.term.master = master
	err = pty.Setsize(master, &s.term.size)
	s.mu.Unlock()
	if err == nil {
		cmd.Env = append(cmd.Env, "TERM="+s.term.name, "SSH_TTY="+slave.Name())
		cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
		cmd.SysProcAttr.Setctty = true
		err = s.begin(cmd)
	}
	if err != nil {
		s.closeTerminal()
		return nil, err
	}
	return func() {
		defer s.closeTerminal()
		drained := make(chan struct{})
		go func() {
			defer close(drained)
			_, _ = io.Copy(s.ch, master)
		}()
		go func() { _, _ = io.Copy(master, s.ch) }() // ends with the channel or the pty
		s.end(cmd)
		limit := time.NewTimer(drainTime)
		defer limit.Stop()
		select {
		case <-drained:
		case <-limit.C:
		}
	}, nil
}

func (s *session) closeTerminal() {
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = s.term.master.Close()
	s.term.master = nil
}

// tellExit reports a status, or the signal that ended the command.
func (s *session) tellExit(state *os.ProcessState) {
	status, ok := state.Sys().(syscall.WaitStatus)
	if !ok || !status.Signaled() {
		s.exit(uint32(max(state.ExitCode(), 0)))
		return
	}
	name := strings.TrimPrefix(unix.SignalName(status.Signal()), "SIG")
	_, _ = s.ch.SendRequest("exit-signal", false, ssh.Marshal(struct {
		Name    string
		Core    bool
		Message string
		Lang    string
	}{name, status.CoreDump(), "", ""}))
}

func (s *session) exit(code uint32) {
	_, _ = s.ch.SendRequest("exit-status", false, ssh.Marshal(struct{ Code uint32 }{code}))
}
