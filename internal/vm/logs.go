package vm

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/paths"
)

// Where a line of a log comes from.
const (
	SourceConsole    = "console"
	SourceHypervisor = "hypervisor"
	SourceDaemon     = "daemon"
)

// LogsRequest asks for a VM's logs.
type LogsRequest struct {
	Ref                         string
	Console, Hypervisor, Daemon bool // none of them means console
	Follow                      bool
	Tail                        int // lines of each; 0 is all
}

// Bounds of reading logs.
const (
	logPoll  = 250 * time.Millisecond
	logBlock = 32 << 10
	maxTail  = 1 << 20  // bytes kept of a line without an end
	maxLog   = 64 << 20 // bytes read of one log at once
)

// Logs gives f what the logs hold, and with Follow what they get, until ctx
// ends. What comes from the guest is the guest's: hostile bytes.
func (s *Service) Logs(ctx context.Context, req LogsRequest, f func(source string, data []byte) error) error {
	v, err := s.Get(req.Ref)
	if err != nil {
		return err
	}
	if req.Tail < 0 {
		return errs.New(errs.Invalid, "tail_invalid", "tail: %d is negative", req.Tail).WithHint("--tail 100")
	}
	if !req.Console && !req.Hypervisor && !req.Daemon {
		req.Console = true
	}
	var logs []*tail
	add := func(on bool, source, path string, only []byte) {
		if on {
			logs = append(logs, &tail{source: source, path: path, only: only})
		}
	}
	add(req.Daemon, SourceDaemon, s.opt.Layout.DaemonLog(), []byte(v.ID))
	add(req.Hypervisor, SourceHypervisor, filepath.Join(v.Dir, paths.VMMLog), nil)
	add(req.Console, SourceConsole, filepath.Join(v.Dir, paths.ConsoleLog), nil)
	defer func() {
		for _, t := range logs {
			t.close()
		}
	}()
	for _, t := range logs {
		if err := t.begin(req.Tail, f); err != nil {
			return err
		}
	}
	if !req.Follow {
		return nil
	}
	tick := time.NewTicker(logPoll)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		for _, t := range logs {
			if err := t.more(f); err != nil {
				return err
			}
		}
		if _, err := s.find(v.ID); err != nil {
			return nil // deleted: there will be no more
		}
	}
}

// openLog opens a log in a directory that may belong to the VM's own user: no
// link is followed and nothing but a regular file is opened.
func openLog(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		f.Close()
		return nil, errs.New(errs.Denied, "log_hostile", "%s is no regular file", path).WithHint("look at it: ls -l %s", path)
	}
	return f, nil
}

// tail reads one log that may be turned over (FILE to FILE.1) while it is read.
type tail struct {
	source, path string
	only         []byte // lines without it are left out
	f            *os.File
	rest         []byte // of a line whose end has not come; only with only
}

func (t *tail) close() {
	if t.f != nil {
		t.f.Close()
		t.f = nil
	}
}

func (t *tail) begin(lines int, f func(string, []byte) error) error {
	var older []byte
	if f, err := openLog(t.path + ".1"); err == nil {
		older, err = io.ReadAll(io.LimitReader(f, maxLog))
		f.Close()
		if err != nil {
			return err
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	now, err := t.open()
	if err != nil {
		return err
	}
	all := t.pick(append(older, now...))
	if lines > 0 {
		all = lastLines(all, lines)
	}
	return t.give(all, f)
}

func (t *tail) open() ([]byte, error) {
	file, err := openLog(t.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	t.f = file
	return io.ReadAll(io.LimitReader(file, maxLog))
}

func (t *tail) more(f func(string, []byte) error) error {
	for {
		if t.f == nil {
			b, err := t.open()
			if err != nil || len(b) == 0 {
				return err
			}
			return t.give(t.pick(b), f)
		}
		b := make([]byte, logBlock)
		n, err := t.f.Read(b)
		if n > 0 {
			if err := t.give(t.pick(b[:n]), f); err != nil {
				return err
			}
			continue
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if !t.turned() {
			return nil
		}
		t.close()
	}
}

// turned says whether the path is another file by now.
func (t *tail) turned() bool {
	open, err := t.f.Stat()
	if err != nil {
		return true
	}
	now, err := os.Stat(t.path)
	return err == nil && !os.SameFile(open, now)
}

// pick leaves out the lines that are not meant.
func (t *tail) pick(b []byte) []byte {
	if t.only == nil {
		return b
	}
	b = append(t.rest, b...)
	end := bytes.LastIndexByte(b, '\n') + 1
	t.rest = append([]byte(nil), b[end:]...)
	if len(t.rest) > maxTail {
		t.rest = nil
	}
	var out []byte
	for line := range bytes.Lines(b[:end]) {
		if bytes.Contains(line, t.only) {
			out = append(out, line...)
		}
	}
	return out
}

func (t *tail) give(b []byte, f func(string, []byte) error) error {
	for len(b) > 0 {
		n := min(len(b), logBlock)
		if err := f(t.source, b[:n]); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

func lastLines(b []byte, n int) []byte {
	at := len(bytes.TrimSuffix(b, []byte("\n")))
	for ; n > 0 && at >= 0; n-- {
		at = bytes.LastIndexByte(b[:at], '\n')
	}
	return b[at+1:]
}
