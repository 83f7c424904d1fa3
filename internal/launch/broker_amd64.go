package launch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What of seccomp's interface is needed (linux/seccomp.h, linux/filter.h).
const (
	seccompSetModeFilter = 1
	filterNewListener    = 1 << 3

	retUserNotif = 0x7fc00000
	retAllow     = 0x7fff0000

	notifRecv    = 0xc0502100
	notifSend    = 0xc0182101
	notifIDValid = 0x40082102
	notifAddFD   = 0x40182103

	notifContinue = 1
	addFDSend     = 2

	auditArch  = 0xc000003e // x86_64
	offNR      = 0
	offArch    = 4
	offFlags   = 16 + 2*8 // args[2], low half
	accessMode = 3
)

// filter stops every openat for reading and writing; all else passes.
var filter = []unix.SockFilter{
	{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offArch},
	{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 5, K: auditArch},
	{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offNR},
	{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 3, K: unix.SYS_OPENAT},
	{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offFlags},
	{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: accessMode},
	{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 1, K: unix.O_RDWR},
	{Code: unix.BPF_RET | unix.BPF_K, K: retAllow},
	{Code: unix.BPF_RET | unix.BPF_K, K: retUserNotif},
}

// BrokerUsable says whether this process can broker for programs of another
// user: the kernel has the means, and this process may read their memory.
func BrokerUsable() bool {
	actions, err := os.ReadFile("/proc/sys/kernel/seccomp/actions_avail")
	if err != nil || !strings.Contains(string(actions), "user_notif") {
		return false
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return false
	}
	return data[0].Effective&(1<<unix.CAP_SYS_PTRACE) != 0
}

// installBroker has the thread's openat calls stop for whoever holds the other
// end of the socket, and closes the socket.
func installBroker(socket int) error {
	defer unix.Close(socket)
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	fd, _, errno := unix.Syscall(unix.SYS_SECCOMP, seccompSetModeFilter, filterNewListener, uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		return fmt.Errorf("install filter: %w", errno)
	}
	defer unix.Close(int(fd))
	if err := unix.Sendmsg(socket, []byte{0}, unix.UnixRights(int(fd)), nil, 0); err != nil {
		return fmt.Errorf("hand over filter: %w", err)
	}
	return nil
}

// notification is struct seccomp_notif.
type notification struct {
	id    uint64
	pid   uint32
	flags uint32
	nr    int32
	arch  uint32
	ip    uint64
	args  [6]uint64
}

// serve answers the program's calls until stop is closed.
func (b *Broker) serve(ctx context.Context) error {
	listener, err := b.receive(ctx)
	if err != nil {
		return err
	}
	defer listener.Close()
	stop := context.AfterFunc(ctx, func() { listener.Close() })
	defer stop()
	raw, err := listener.SyscallConn()
	if err != nil {
		return err
	}
	for {
		var aerr error
		if err := raw.Read(func(fd uintptr) bool {
			fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
			n, err := unix.Poll(fds, 0)
			if err != nil && !errors.Is(err, unix.EINTR) {
				aerr = err
				return true
			}
			if n == 0 || err != nil {
				return false
			}
			if fds[0].Revents&unix.POLLIN == 0 { // the program has ended
				aerr = errBrokerDone
				return true
			}
			aerr = b.answer(int(fd))
			return true
		}); err != nil || errors.Is(aerr, errBrokerDone) {
			return nil // closed by ctx's end
		}
		if aerr != nil {
			return aerr
		}
	}
}

// receive takes the listener that installBroker sends.
func (b *Broker) receive(ctx context.Context) (*os.File, error) {
	stop := context.AfterFunc(ctx, func() { b.ours.Close() })
	defer stop()
	raw, err := b.ours.SyscallConn()
	if err != nil {
		return nil, err
	}
	oob := make([]byte, unix.CmsgSpace(4))
	var n int
	var rerr error
	if err := raw.Read(func(fd uintptr) bool {
		_, n, _, _, rerr = unix.Recvmsg(int(fd), make([]byte, 1), oob, unix.MSG_CMSG_CLOEXEC)
		return !errors.Is(rerr, unix.EAGAIN)
	}); err != nil {
		return nil, err
	}
	if rerr != nil {
		return nil, rerr
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(msgs) != 1 {
		return nil, errors.New("the launcher sent no filter")
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		return nil, errors.New("the launcher sent no filter")
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		unix.Close(fds[0])
		return nil, err
	}
	return os.NewFile(uintptr(fds[0]), "seccomp listener"), nil
}

// answer takes one call: the one that opens the file gets it, opened as it was
// here; every other is let go on.
func (b *Broker) answer(fd int) error {
	var n notification
	if err := ioctl(fd, notifRecv, unsafe.Pointer(&n)); err != nil {
		return ignoreEnded(err)
	}
	if b.wanted(fd, n) {
		add := struct {
			id                             uint64
			flags, src, newFD, newFDsFlags uint32
		}{id: n.id, flags: addFDSend, src: uint32(b.file.Fd()), newFDsFlags: unix.O_CLOEXEC}
		return ignoreEnded(ioctl(fd, notifAddFD, unsafe.Pointer(&add)))
	}
	resp := struct {
		id    uint64
		val   int64
		err   int32
		flags uint32
	}{id: n.id, flags: notifContinue}
	return ignoreEnded(ioctl(fd, notifSend, unsafe.Pointer(&resp)))
}

// wanted reads the path that the program names. It could change it after this
// look, and would then open nothing but what was meant for it.
func (b *Broker) wanted(fd int, n notification) bool {
	buf := make([]byte, len(b.path)+1)
	local := []unix.Iovec{{Base: &buf[0], Len: uint64(len(buf))}}
	remote := []unix.RemoteIovec{{Base: uintptr(n.args[1]), Len: len(buf)}}
	if k, err := unix.ProcessVMReadv(int(n.pid), local, remote, 0); err != nil || k != len(buf) {
		return false
	}
	// The pid is that process's still, if its call is.
	if ioctl(fd, notifIDValid, unsafe.Pointer(&n.id)) != nil {
		return false
	}
	return bytes.Equal(buf, append([]byte(b.path), 0))
}

// ignoreEnded: ENOENT says that the caller ended or was interrupted meanwhile.
func ignoreEnded(err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINTR) {
		return nil
	}
	return err
}

func ioctl(fd int, request uintptr, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}

// A notification has the kernel's size, or this does not compile.
var _ [80 - unsafe.Sizeof(notification{})]struct{} = [0]struct{}{}
