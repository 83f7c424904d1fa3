package proc

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// Cmd says what to start.
type Cmd struct {
	// Path is the program, absolute or with a slash; nothing is looked up.
	Path string
	// Args are the arguments after argv[0], which is Path.
	Args []string
	// Env is the whole environment; nil means an empty one.
	Env []string
	// Dir is the working directory; "" means "/", so that no mount is
	// kept busy by a process that lives long.
	Dir string
	// Stdin, Stdout and Stderr are files, never pipes of the parent's that
	// would break with it; nil means the null device.
	Stdin, Stdout, Stderr *os.File
	// ExtraFiles become descriptors 3, 4, ... A nil entry is a closed one.
	ExtraFiles []*os.File
	// Credential is the user to run as; nil means as the caller. All
	// supplementary groups are replaced by Groups.
	Credential *Credential
	// Rlimits are set right after the start.
	Rlimits []Rlimit
}

// Credential is a numeric user with its groups.
type Credential struct {
	UID    uint32   `json:"uid"`
	GID    uint32   `json:"gid"`
	Groups []uint32 `json:"groups,omitempty"`
}

// Rlimit is a resource limit, soft and hard alike.
type Rlimit struct {
	Resource int    `json:"resource"` // unix.RLIMIT_…
	Value    uint64 `json:"value"`
}

// Start starts a process in a session of its own, with no tie to this one's
// life: no controlling terminal, no signal at the parent's death, standard
// streams on files. It returns once the program was executed; a program that
// cannot be is an error here. The caller keeps its files and closes them.
func Start(cmd Cmd) (*Process, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	files := make([]*os.File, 0, 3+len(cmd.ExtraFiles))
	for _, f := range []*os.File{cmd.Stdin, cmd.Stdout, cmd.Stderr} {
		if f == nil {
			f = null
		}
		files = append(files, f)
	}
	files = append(files, cmd.ExtraFiles...)

	attr := &os.ProcAttr{
		Dir: cmd.Dir, Env: cmd.Env, Files: files,
		Sys: &syscall.SysProcAttr{Setsid: true},
	}
	if attr.Dir == "" {
		attr.Dir = "/"
	}
	if attr.Env == nil {
		attr.Env = []string{} // nil would mean the parent's
	}
	if c := cmd.Credential; c != nil {
		attr.Sys.Credential = &syscall.Credential{Uid: c.UID, Gid: c.GID, Groups: c.Groups}
	}
	child, err := os.StartProcess(cmd.Path, append([]string{cmd.Path}, cmd.Args...), attr)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", filepath.Base(cmd.Path), err)
	}
	p, err := adoptChild(child, cmd.Rlimits)
	if err != nil {
		child.Kill() //nolint:errcheck // it has ended if this fails
		child.Wait() //nolint:errcheck // reaped either way
		return nil, fmt.Errorf("start %s: %w", filepath.Base(cmd.Path), err)
	}
	return p, nil
}

func adoptChild(child *os.Process, limits []Rlimit) (*Process, error) {
	// Until it is reaped the pid cannot be another's, even if it has ended.
	st, err := readStat(child.Pid)
	if err != nil {
		return nil, err
	}
	boot, err := BootID()
	if err != nil {
		return nil, err
	}
	for _, l := range limits {
		lim := unix.Rlimit{Cur: l.Value, Max: l.Value}
		if err := unix.Prlimit(child.Pid, l.Resource, &lim, nil); err != nil {
			return nil, fmt.Errorf("set limit %d: %w", l.Resource, err)
		}
	}
	return open(Identity{PID: child.Pid, Start: st.start, Boot: boot}, child)
}
