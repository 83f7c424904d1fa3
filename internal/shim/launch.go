package shim

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/hypervisor"
	"github.com/banger-dev/banger/internal/proc"
)

const (
	startLimit = 10 * time.Second
	askLimit   = 3 * time.Second
	stopGrace  = 2 * time.Second
)

// Launcher starts shims.
type Launcher struct {
	// Program is the bangerd binary, absolute.
	Program string
	// Args come before the marker; nil means "shim".
	Args []string
}

// Start starts a shim and returns when its sockets listen. dir is the VM's own
// directory. nic is passed on as its network's end, or nil; the caller closes
// its copy. With cred the shim, started by root, becomes that user.
func (l Launcher) Start(ctx context.Context, cfg Config, dir string, nic *os.File, cred *hypervisor.Credential) (Ref, error) {
	cfg.Dir = dir
	if cred != nil {
		cfg.User = &proc.Credential{UID: cred.UID, GID: cred.GID}
	}
	ref, err := l.start(ctx, cfg, nic)
	if err != nil {
		return Ref{}, errs.Wrap(err, errs.Unavailable, "shim_start", "start the process beside %q", cfg.VM)
	}
	return ref, nil
}

func (l Launcher) start(ctx context.Context, cfg Config, nic *os.File) (Ref, error) {
	stdin, err := memFile(cfg)
	if err != nil {
		return Ref{}, err
	}
	defer stdin.Close()
	out, in, err := os.Pipe()
	if err != nil {
		return Ref{}, err
	}
	defer out.Close()
	args := l.Args
	if args == nil {
		args = []string{"shim"}
	}
	cmd := proc.Cmd{
		Path:  l.Program,
		Args:  append(append([]string(nil), args...), proc.Marker{VM: cfg.VM, Dir: cfg.Dir}.String()),
		Stdin: stdin, Stdout: in,
		Rlimits: []proc.Rlimit{{Resource: unix.RLIMIT_CORE, Value: 0}},
	}
	if nic != nil {
		cmd.ExtraFiles = []*os.File{nic}
	}
	p, err := proc.Start(cmd)
	in.Close()
	if err != nil {
		return Ref{}, err
	}
	defer p.Close()
	if err := awaitReady(ctx, out); err != nil {
		// Even where ctx has ended nothing may be left running.
		kctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopGrace)
		defer cancel()
		return Ref{}, errors.Join(err, p.Kill(kctx))
	}
	return Ref{VM: cfg.VM, Process: p.Identity(), Control: cfg.Control}, nil
}

// memFile holds the config for a child to read: no pipe that could break.
func memFile(cfg Config) (*os.File, error) {
	raw, err := json.Marshal(cfg)
	if err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate("banger-shim", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make a file in memory: %w", err)
	}
	f := os.NewFile(uintptr(fd), "config")
	if _, err := f.WriteAt(raw, 0); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func awaitReady(ctx context.Context, out *os.File) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = out.SetReadDeadline(time.Unix(1, 0)) }) // wakes the read
	defer stop()
	line, err := bufio.NewReader(io.LimitReader(out, 4<<10)).ReadString('\n')
	switch {
	case line == readyLine:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case line != "":
		return errors.New(strings.TrimPrefix(strings.TrimSpace(line), "error: "))
	case errors.Is(err, io.EOF):
		return errors.New("it ended before it was ready")
	}
	return err
}

// Alive says whether the shim still runs.
func (Launcher) Alive(ref Ref) bool { return proc.Alive(ref.Process) }

// Stop is the function Stop.
func (Launcher) Stop(ctx context.Context, ref Ref) error { return Stop(ctx, ref) }

// Stop asks a shim to end, waits, and kills it where it does not. One that is
// gone is no error.
func Stop(ctx context.Context, ref Ref) error {
	p, err := proc.Open(ref.Process)
	if errors.Is(err, proc.ErrGone) {
		return nil
	}
	if err != nil {
		return errs.Wrap(err, errs.Internal, "shim_stop", "stop the process beside %q", ref.VM)
	}
	defer p.Close()
	if _, err := ask(ctx, ref, opStop); err == nil {
		wctx, cancel := context.WithTimeout(ctx, stopGrace)
		defer cancel()
		if p.Wait(wctx) == nil {
			return nil
		}
	}
	if _, err := p.Terminate(ctx, stopGrace); err != nil {
		return errs.Wrap(err, errs.Internal, "shim_stop", "stop the process beside %q", ref.VM)
	}
	return nil
}

// Status asks a shim what it does.
func Status(ctx context.Context, ref Ref) (Report, error) {
	r, err := ask(ctx, ref, opStatus)
	if err == nil && r.Report == nil {
		err = errors.New("an answer without a report")
	}
	if err != nil {
		return Report{}, errs.Wrap(err, errs.Unavailable, "shim_silent", "ask the process beside %q", ref.VM)
	}
	return *r.Report, nil
}

// Adopt finds a running shim again, from any process of the user's, and checks
// that it is the VM's. The handle tells of its end; the caller closes it, which
// leaves the shim running. proc.ErrGone when it no longer runs.
func Adopt(ctx context.Context, ref Ref) (*proc.Process, error) {
	p, err := proc.Open(ref.Process)
	if err != nil {
		return nil, errs.Wrap(err, errs.Unavailable, "shim_gone", "find the process beside %q", ref.VM)
	}
	r, err := Status(ctx, ref)
	if err == nil && r.VM != ref.VM {
		err = errs.New(errs.Conflict, "shim_other", "the process beside %q says it is another VM's", ref.VM)
	}
	if err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

// ask puts one request to a shim and reads the bounded answer.
func ask(ctx context.Context, ref Ref, op string) (reply, error) {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", ref.Control)
	if err != nil {
		return reply{}, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) }) // wakes it
	defer stop()
	line, err := json.Marshal(request{Op: op})
	if err != nil {
		return reply{}, err
	}
	if _, err := conn.Write(append(line, '\n')); err != nil {
		return reply{}, err
	}
	return readReply(conn)
}

func readReply(r io.Reader) (reply, error) {
	line, err := bufio.NewReader(io.LimitReader(r, maxReply)).ReadBytes('\n')
	if err != nil {
		return reply{}, err
	}
	var rep reply
	if err := json.Unmarshal(bytes.TrimSpace(line), &rep); err != nil {
		return reply{}, err
	}
	if rep.Error != "" {
		return reply{}, errors.New(rep.Error)
	}
	return rep, nil
}
