package shim

import (
	"errors"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What the process never does: run programs, make processes, look into others,
// change mounts, namespaces or the kernel. Answered with EPERM, so that a
// defect here shows as an error and not as a death.
var forbidden = []uint32{
	unix.SYS_EXECVE, unix.SYS_EXECVEAT, unix.SYS_PTRACE, unix.SYS_KILL,
	unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV, unix.SYS_PIDFD_GETFD, unix.SYS_PIDFD_SEND_SIGNAL,
	unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_MOVE_MOUNT, unix.SYS_OPEN_TREE, unix.SYS_FSOPEN, unix.SYS_FSMOUNT,
	unix.SYS_PIVOT_ROOT, unix.SYS_CHROOT, unix.SYS_SETNS, unix.SYS_UNSHARE,
	unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN, unix.SYS_USERFAULTFD,
	unix.SYS_IO_URING_SETUP, unix.SYS_IO_URING_ENTER, unix.SYS_IO_URING_REGISTER,
	unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY, unix.SYS_KEYCTL,
	unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE,
	unix.SYS_KEXEC_LOAD, unix.SYS_KEXEC_FILE_LOAD, unix.SYS_REBOOT, unix.SYS_SWAPON, unix.SYS_SWAPOFF,
	unix.SYS_OPEN_BY_HANDLE_AT, unix.SYS_NAME_TO_HANDLE_AT, unix.SYS_ACCT, unix.SYS_QUOTACTL,
	unix.SYS_SETTIMEOFDAY, unix.SYS_CLOCK_SETTIME, unix.SYS_ADJTIMEX,
}

// Sockets it may make: to the world, and to ask for routes.
var families = []uint32{unix.AF_INET, unix.AF_INET6, unix.AF_NETLINK}

// Offsets in struct seccomp_data, of the low halves of 64-bit arguments.
const (
	offNr   = 0
	offArch = 4
	offArg0 = 16
)

var auditArch = map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64}

// x32 calls carry this bit and would slip past the numbers.
const x32Bit = 0x40000000

func seccompFilter(arch uint32) []unix.SockFilter {
	var (
		kill  = ret(unix.SECCOMP_RET_KILL_PROCESS)
		deny  = ret(unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM))
		nosys = ret(unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS))
		allow = ret(unix.SECCOMP_RET_ALLOW)
	)
	p := []unix.SockFilter{
		load(offArch), jump(unix.BPF_JEQ, arch, 1, 0), kill,
		load(offNr), jump(unix.BPF_JGE, x32Bit, 0, 1), kill,
		// clone3 hides its flags from a filter; ENOSYS makes callers
		// take clone, of which only threads are let through.
		jump(unix.BPF_JEQ, unix.SYS_CLONE3, 0, 1), nosys,
	}
	for _, nr := range append(append([]uint32(nil), forbidden...), forks...) {
		p = append(p, jump(unix.BPF_JEQ, nr, 0, 1), deny)
	}
	p = append(p,
		jump(unix.BPF_JEQ, unix.SYS_CLONE, 0, 3),
		load(offArg0), jump(unix.BPF_JSET, unix.CLONE_THREAD, 1, 0), deny,
		load(offNr), jump(unix.BPF_JEQ, unix.SYS_SOCKET, 1, 0), allow,
		load(offArg0),
	)
	for _, f := range families {
		p = append(p, jump(unix.BPF_JEQ, f, 0, 1), allow)
	}
	return append(p, deny)
}

func load(off uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: off}
}

func jump(op uint16, k uint32, yes, no uint8) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | op | unix.BPF_K, K: k, Jt: yes, Jf: no}
}

func ret(k uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: k}
}

// seccomp puts the filter on every thread, and no_new_privs with it.
func seccomp() error {
	arch, ok := auditArch[runtime.GOARCH]
	if !ok {
		return errors.New("no filter for this architecture")
	}
	filter := seccompFilter(arch)
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	_, _, e := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	runtime.KeepAlive(filter)
	if e != 0 {
		return e
	}
	return nil
}
