package agent

import (
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/guest/wire"
	"golang.org/x/sys/unix"
)

// execs are the commands that the agent keeps, by id.
type execs struct {
	opts  Options
	tools toolchain
	pumps sync.WaitGroup // everything that belongs to commands

	mu     sync.Mutex
	byID   map[string]*execution
	closed bool
	cgroup *os.File // of commands; nil until it was found
	drains map[*os.File]bool
}

func newExecs(opts Options) *execs {
	if opts.CgroupRoot == "" {
		opts.CgroupRoot = "/sys/fs/cgroup"
	}
	if opts.MaxExecs == 0 {
		opts.MaxExecs = wire.MaxExecs
	}
	return &execs{opts: opts, tools: toolchain{programs: misePrograms}, byID: make(map[string]*execution), drains: make(map[*os.File]bool)}
}

func (x *execs) count() int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return len(x.byID)
}

// add reserves an id. Where the very same command was asked for before, by a
// host that lost its link before it heard of it, that one is given.
func (x *execs) add(e *execution) (before *execution, err error) {
	if e.id == "" || len(e.id) > 64 {
		return nil, errs.New(errs.Invalid, "bad_request", "a command's id has 1 to 64 bytes")
	}
	if x.count() >= x.opts.MaxExecs {
		x.evict()
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	before = x.byID[e.id]
	switch {
	case x.closed:
		return nil, errs.New(errs.Unavailable, "agent_stops", "the agent is stopping")
	case before != nil && before.asked == e.asked:
		return before, nil
	case before != nil:
		return nil, errs.New(errs.Conflict, "command_exists", "another command has the id %q", e.id)
	case len(x.byID) >= x.opts.MaxExecs:
		return nil, errs.New(errs.Exhausted, "too_many_commands", "%d commands are kept already", len(x.byID))
	}
	x.byID[e.id] = e
	return nil, nil
}

// evict forgets the commands that have ended and that nobody reads: of hosts
// that never said that they were done.
func (x *execs) evict() {
	x.mu.Lock()
	all := make([]*execution, 0, len(x.byID))
	for _, e := range x.byID {
		all = append(all, e)
	}
	x.mu.Unlock()
	for _, e := range all {
		e.mu.Lock()
		if e.exit != nil && e.reader == nil {
			e.forget()
		}
		e.mu.Unlock()
	}
}

func (x *execs) find(id string) (*execution, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if e := x.byID[id]; e != nil {
		return e, nil
	}
	return nil, errs.New(errs.NotFound, "no_command", "no command %q", id)
}

func (x *execs) remove(e *execution) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.byID[e.id] == e {
		delete(x.byID, e.id)
	}
}

func (x *execs) close() {
	x.mu.Lock()
	x.closed = true
	for f := range x.drains {
		_ = f.SetReadDeadline(time.Unix(1, 0))
	}
	var all []*execution
	for _, e := range x.byID {
		all = append(all, e)
	}
	x.mu.Unlock()
	for _, e := range all {
		e.kill()
	}
	x.pumps.Wait()
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.cgroup != nil {
		x.cgroup.Close()
		x.cgroup = nil
	}
}

// drain drops what processes that outlived their command still write, until
// the last of them is gone.
func (x *execs) drain(f *os.File, buf []byte) {
	defer f.Close()
	x.mu.Lock()
	closed := x.closed
	if !closed {
		_ = f.SetReadDeadline(time.Time{})
		x.drains[f] = true
	}
	x.mu.Unlock()
	if closed {
		return
	}
	_, _ = io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{f}, buf)
	x.mu.Lock()
	delete(x.drains, f)
	x.mu.Unlock()
}

// commandCgroup gives the directory of the commands' control group, made when
// it is not there; nil where there is no cgroup2. Again forgets one that has
// turned out to be gone.
func (x *execs) commandCgroup(again bool) *os.File {
	if x.opts.NoCgroup {
		return nil
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.cgroup != nil && !again {
		return x.cgroup
	}
	if x.cgroup != nil {
		x.cgroup.Close()
		x.cgroup = nil
	}
	var fs unix.Statfs_t
	if unix.Statfs(x.opts.CgroupRoot, &fs) != nil || fs.Type != unix.CGROUP2_SUPER_MAGIC {
		return nil
	}
	dir := filepath.Join(x.opts.CgroupRoot, wire.CommandCgroup)
	if err := os.Mkdir(dir, 0o755); err != nil && !os.IsExist(err) {
		return nil
	}
	f, err := os.OpenFile(dir, unix.O_DIRECTORY|unix.O_PATH, 0)
	if err != nil {
		return nil
	}
	x.cgroup = f
	return f
}
