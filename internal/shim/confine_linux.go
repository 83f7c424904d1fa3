package shim

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/banger-dev/banger/internal/proc"
)

// confine takes from the process what it will not need again, and says what it
// took. Becoming another user must succeed where it was asked for; the rest is
// as good as the kernel is, and stands in the report.
func confine(user *proc.Credential, consoleCap int64) ([]string, error) {
	var did []string
	if user != nil {
		if err := become(user); err != nil {
			return nil, err
		}
		did = append(did, "user")
	}
	if err := limits(consoleCap); err != nil {
		return nil, err
	}
	// The filter goes to all threads at once; what else is a thread's own
	// has to be set on each, for which this one must stay itself.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("set no_new_privs: %w", err)
	}
	if err := seccomp(); err == nil {
		did = append(did, "no_new_privs", "seccomp")
	}
	if err := landlock("/etc", "/run"); err == nil {
		did = append(did, "landlock")
	}
	if err := dropCapabilities(); err == nil {
		did = append(did, "capabilities")
	}
	return did, nil
}

// become changes user and groups for good, on all threads; capabilities go
// with the user.
func become(u *proc.Credential) error {
	groups := make([]int, 0, len(u.Groups))
	for _, g := range u.Groups {
		groups = append(groups, int(g))
	}
	if err := syscall.Setgroups(groups); err != nil {
		return fmt.Errorf("drop groups: %w", err)
	}
	gid, uid := int(u.GID), int(u.UID)
	if err := syscall.Setresgid(gid, gid, gid); err != nil {
		return fmt.Errorf("become group %d: %w", gid, err)
	}
	if err := syscall.Setresuid(uid, uid, uid); err != nil {
		return fmt.Errorf("become user %d: %w", uid, err)
	}
	if uid != 0 && syscall.Setuid(0) == nil {
		return errors.New("still root after becoming another user")
	}
	// After a change of user the kernel forbids looking into the process,
	// which is right: its memory holds what guests send.
	return nil
}

// dropCapabilities empties every set of every thread, which is what is left of
// root where it stays the user.
func dropCapabilities() error {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	_, _, e := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&head)), uintptr(unsafe.Pointer(&none[0])), 0)
	if e != 0 {
		return e
	}
	return nil
}

// limits bounds files: none can grow past a console's log.
func limits(consoleCap int64) error {
	size := uint64(max(consoleCap, logCap)) + 1<<20
	for what, l := range map[int]unix.Rlimit{
		unix.RLIMIT_FSIZE: {Cur: size, Max: size},
		unix.RLIMIT_CORE:  {},
	} {
		if err := unix.Setrlimit(what, &l); err != nil {
			return fmt.Errorf("set limit %d: %w", what, err)
		}
	}
	return nil
}

// landlock leaves the process nothing but reading beneath dirs, where the
// names of the host's resolvers stand. Files that are open stay usable.
func landlock(dirs ...string) error {
	version, _, e := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if e != 0 {
		return e
	}
	attr := unix.LandlockRulesetAttr{Handled_access_fs: landlockAccess(int(version))}
	size := unsafe.Sizeof(attr.Handled_access_fs)
	if version >= 6 {
		attr.Scoped = unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET | unix.LANDLOCK_SCOPE_SIGNAL
		size = unsafe.Offsetof(attr.Scoped) + unsafe.Sizeof(attr.Scoped)
	}
	fd, _, e := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), size, 0)
	if e != 0 {
		return e
	}
	defer unix.Close(int(fd))
	for _, d := range dirs {
		if err := landlockRead(int(fd), d); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	// Not possible in a program linked with C, such as one with the race
	// detector in it; ours is not.
	if _, _, e := syscall.AllThreadsSyscall(unix.SYS_LANDLOCK_RESTRICT_SELF, fd, 0, 0); e != 0 {
		return e
	}
	return nil
}

// landlockAccess is every right the kernel's version knows of.
func landlockAccess(version int) uint64 {
	bits := 13
	switch {
	case version >= 5:
		bits = 16
	case version >= 3:
		bits = 15
	case version == 2:
		bits = 14
	}
	return 1<<bits - 1
}

func landlockRead(ruleset int, dir string) error {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	rule := unix.LandlockPathBeneathAttr{
		Allowed_access: unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_READ_DIR,
		Parent_fd:      int32(fd),
	}
	_, _, e := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, uintptr(ruleset), unix.LANDLOCK_RULE_PATH_BENEATH, uintptr(unsafe.Pointer(&rule)), 0, 0, 0)
	if e != 0 {
		return e
	}
	return nil
}
