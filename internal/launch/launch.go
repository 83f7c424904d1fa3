// Package launch is the last step before a hypervisor runs: `bangerd launch`
// reads a Spec from its standard input, takes from itself what the hypervisor
// must not have, and executes it in its own place, so the pid stays.
//
// It is a program of its own because some of that (no_new_privs, who may read
// the process's memory) can only be asked for by the process itself. It opens
// nothing for the hypervisor: descriptors come from the caller. What it is
// told beyond argv stays out of argv and environment, where others can read it.
package launch

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/banger-dev/banger/internal/proc"
)

// Verb is the first argument by which a binary knows that it is to be Main.
const Verb = "launch"

// Spec says what to execute and how. It is handed over as one JSON document.
type Spec struct {
	// Path is the program, absolute; Args all its arguments, argv[0] first.
	Path string   `json:"path"`
	Args []string `json:"args"`
	Env  []string `json:"env,omitempty"`
	// Credential is the user to become, with no capability left; nil means
	// as the caller, whose capabilities are dropped as well.
	Credential *proc.Credential `json:"credential,omitempty"`
	Rlimits    []proc.Rlimit    `json:"rlimits,omitempty"`
	// Files is how many descriptors from 3 on are the program's; all
	// others are closed.
	Files int `json:"files"`
	// Broker is the descriptor of a Broker's end, the last of Files, or 0
	// for none. The program does not get it.
	Broker int `json:"broker,omitempty"`
	// Readable lets processes of the same user read the program's memory
	// under Yama too: a daemon that came later saves a machine's RAM so.
	Readable bool `json:"readable,omitempty"`
}

const (
	maxSpec  = 1 << 20
	exitFail = 126 // the program was never run
)

// Command gives the proc.Cmd that starts spec by launcher, the argv prefix of
// a program that calls Main ("/usr/lib/banger/bangerd", "launch"). marker is
// shown in argv until the program replaces it. The caller closes the Cmd's
// Stdin after the start.
func Command(launcher []string, marker string, spec Spec, files []*os.File) (proc.Cmd, error) {
	if len(launcher) == 0 {
		return proc.Cmd{}, errors.New("no launcher given")
	}
	spec.Files = len(files)
	b, err := json.Marshal(spec)
	if err != nil {
		return proc.Cmd{}, fmt.Errorf("write launch spec: %w", err)
	}
	if len(b) > maxSpec {
		return proc.Cmd{}, fmt.Errorf("launch spec of %d bytes is too long", len(b))
	}
	fd, err := unix.MemfdCreate("launch", unix.MFD_CLOEXEC)
	if err != nil {
		return proc.Cmd{}, fmt.Errorf("make launch spec: %w", err)
	}
	in := os.NewFile(uintptr(fd), "launch spec")
	if _, err := in.WriteAt(b, 0); err != nil {
		in.Close()
		return proc.Cmd{}, fmt.Errorf("write launch spec: %w", err)
	}
	args := append(append([]string{}, launcher[1:]...), marker)
	return proc.Cmd{Path: launcher[0], Args: args, Stdin: in, ExtraFiles: files}, nil
}

// Main reads the Spec on standard input and becomes the program. It returns
// only when that failed, with the exit status to give; why is on standard
// error, one line.
func Main() int {
	// Much of what follows is the calling thread's: exec has to be its too.
	runtime.LockOSThread()
	err := run(os.Stdin)
	fmt.Fprintf(os.Stderr, "launch: %v\n", err)
	return exitFail
}

func run(in io.Reader) error {
	spec, err := read(in)
	if err != nil {
		return err
	}
	if err := nullStdin(); err != nil {
		return err
	}
	unix.Umask(0o077)
	for _, l := range spec.Rlimits {
		if err := unix.Setrlimit(l.Resource, &unix.Rlimit{Cur: l.Value, Max: l.Value}); err != nil {
			return fmt.Errorf("set limit %d: %w", l.Resource, err)
		}
	}
	// Left open for exec to close, which the Go runtime still needs some of.
	if err := unix.CloseRange(uint(3+spec.Files), ^uint(0)>>1, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("close descriptors: %w", err)
	}
	if err := drop(spec.Credential); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	if spec.Readable {
		// EINVAL: no Yama, and so nothing to allow.
		err := unix.Prctl(unix.PR_SET_PTRACER, ^uintptr(0), 0, 0, 0)
		if err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("set ptracer: %w", err)
		}
	}
	if spec.Broker != 0 {
		if err := installBroker(spec.Broker); err != nil {
			return fmt.Errorf("broker: %w", err)
		}
	}
	if err := syscall.Exec(spec.Path, spec.Args, spec.Env); err != nil {
		return fmt.Errorf("execute %s: %w", filepath.Base(spec.Path), err)
	}
	return nil
}

func read(in io.Reader) (Spec, error) {
	b, err := io.ReadAll(io.LimitReader(in, maxSpec+1))
	if err != nil {
		return Spec{}, fmt.Errorf("read spec: %w", err)
	}
	if len(b) > maxSpec {
		return Spec{}, errors.New("spec is too long")
	}
	var s Spec
	if err := json.Unmarshal(b, &s); err != nil {
		return Spec{}, fmt.Errorf("read spec: %w", err)
	}
	if !filepath.IsAbs(s.Path) || len(s.Args) == 0 || s.Files < 0 || s.Files > 1024 || (s.Broker != 0 && s.Broker != 2+s.Files) {
		return Spec{}, errors.New("spec is not complete")
	}
	return s, nil
}

func nullStdin() error {
	f, err := os.OpenFile(os.DevNull, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Dup3(int(f.Fd()), 0, 0); err != nil {
		return fmt.Errorf("replace standard input: %w", err)
	}
	return nil
}

// drop becomes the user and gives up every capability for good.
func drop(c *proc.Credential) error {
	// The bounding set needs CAP_SETPCAP; without that there is nothing in
	// the other sets that exec could add to under no_new_privs.
	for capability := uintptr(0); capability <= unix.CAP_LAST_CAP; capability++ {
		err := unix.Prctl(unix.PR_CAPBSET_DROP, capability, 0, 0, 0)
		if err != nil && !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("drop capability %d: %w", capability, err)
		}
	}
	if c != nil {
		groups := make([]int, len(c.Groups))
		for i, g := range c.Groups {
			groups[i] = int(g)
		}
		if err := syscall.Setgroups(groups); err != nil {
			return fmt.Errorf("set groups: %w", err)
		}
		if err := syscall.Setresgid(int(c.GID), int(c.GID), int(c.GID)); err != nil {
			return fmt.Errorf("become group %d: %w", c.GID, err)
		}
		if err := syscall.Setresuid(int(c.UID), int(c.UID), int(c.UID)); err != nil {
			return fmt.Errorf("become user %d: %w", c.UID, err)
		}
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("clear ambient capabilities: %w", err)
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if err := unix.Capset(&hdr, &none[0]); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	return nil
}
