package kvm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What of KVM's interface the test guest needs (linux/kvm.h).
const (
	kvmGetAPIVersion       = 0xae00
	kvmCreateVM            = 0xae01
	kvmGetVCPUMmapSize     = 0xae04
	kvmCreateVCPU          = 0xae41
	kvmSetUserMemoryRegion = 0x4020ae46
	kvmSetTSSAddr          = 0xae47
	kvmRun                 = 0xae80
	kvmSetRegs             = 0x4090ae82
	kvmGetSregs            = 0x8138ae83
	kvmSetSregs            = 0x4138ae84

	exitIO  = 2
	exitHLT = 5

	apiVersion = 12
	tssAddr    = 0xfffbd000
	loadAddr   = 0x1000
	testPort   = 0x3f8
)

// code adds AL and BL, writes the sum to the port in DX, and halts.
var code = []byte{0x00, 0xd8, 0xee, 0xf4}

// runGuest gives the guest 40 and 2 and wants 42 at the port and then a halt.
func runGuest(ctx context.Context) error {
	kvm, err := unix.Open(Device, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(kvm)
	if v, err := ioctl(kvm, kvmGetAPIVersion, 0); err != nil || v != apiVersion {
		return fmt.Errorf("interface version %d, %w", v, errOr(err, "not 12"))
	}
	vm, err := ioctl(kvm, kvmCreateVM, 0)
	if err != nil {
		return fmt.Errorf("create VM: %w", err)
	}
	defer unix.Close(vm)
	// Needed by older Intel CPUs only; KVM on others takes no notice.
	if _, err := ioctl(vm, kvmSetTSSAddr, tssAddr); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("set TSS: %w", err)
	}
	mem, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	defer unix.Munmap(mem) //nolint:errcheck // it was mapped above
	copy(mem, code)
	region := struct {
		slot, flags          uint32
		guest, size, address uint64
	}{guest: loadAddr, size: 4096, address: uint64(uintptr(unsafe.Pointer(&mem[0])))}
	if err := ioctlPtr(vm, kvmSetUserMemoryRegion, unsafe.Pointer(&region)); err != nil {
		return fmt.Errorf("give memory: %w", err)
	}
	vcpu, err := ioctl(vm, kvmCreateVCPU, 0)
	if err != nil {
		return fmt.Errorf("create CPU: %w", err)
	}
	size, err := ioctl(kvm, kvmGetVCPUMmapSize, 0)
	if err != nil {
		unix.Close(vcpu)
		return fmt.Errorf("map CPU: %w", err)
	}
	state, err := unix.Mmap(vcpu, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		unix.Close(vcpu)
		return fmt.Errorf("map CPU: %w", err)
	}
	c := &cpu{fd: vcpu, state: state}
	defer c.free()
	if err := c.reset(); err != nil {
		return err
	}
	return c.check(ctx)
}

type cpu struct {
	fd    int
	state []byte // struct kvm_run
}

func (c *cpu) free() {
	unix.Munmap(c.state) //nolint:errcheck // it was mapped by runGuest
	unix.Close(c.fd)
}

func (c *cpu) reset() error {
	var sregs [312]byte
	if err := ioctlPtr(c.fd, kvmGetSregs, unsafe.Pointer(&sregs)); err != nil {
		return fmt.Errorf("get registers: %w", err)
	}
	clear(sregs[0:8])   // cs.base
	clear(sregs[12:14]) // cs.selector
	if err := ioctlPtr(c.fd, kvmSetSregs, unsafe.Pointer(&sregs)); err != nil {
		return fmt.Errorf("set registers: %w", err)
	}
	var regs [18]uint64
	regs[0], regs[1], regs[3] = 40, 2, testPort // rax, rbx, rdx
	regs[16], regs[17] = loadAddr, 2            // rip, rflags
	if err := ioctlPtr(c.fd, kvmSetRegs, unsafe.Pointer(&regs)); err != nil {
		return fmt.Errorf("set registers: %w", err)
	}
	return nil
}

// check runs the guest to its two exits.
func (c *cpu) check(ctx context.Context) error {
	reason, err := c.run(ctx)
	if err != nil {
		return err
	}
	port := binary.LittleEndian.Uint16(c.state[34:])
	data := binary.LittleEndian.Uint64(c.state[40:])
	if reason != exitIO || port != testPort || data >= uint64(len(c.state)) || c.state[data] != 42 {
		return fmt.Errorf("it stopped for reason %d in place of its output", reason)
	}
	if reason, err = c.run(ctx); err != nil {
		return err
	}
	if reason != exitHLT {
		return fmt.Errorf("it stopped for reason %d in place of its halt", reason)
	}
	return nil
}

// run enters the guest until it exits, at most until ctx ends. KVM_RUN returns
// when its thread gets a signal; the Go runtime uses SIGURG for its own
// purposes and expects it at any time. A kernel that does not even take the
// signal keeps the thread, and the probe goes on without it.
func (c *cpu) run(ctx context.Context) (reason uint32, err error) {
	tid, done := make(chan int, 1), make(chan error, 1)
	go enter(ctx, c.fd, tid, done)
	thread := <-tid
	exited := func(err error) (uint32, error) {
		if err != nil {
			return 0, err
		}
		return binary.LittleEndian.Uint32(c.state[8:]), nil
	}
	select {
	case err := <-done:
		return exited(err)
	case <-ctx.Done():
	}
	// Again and again: a signal that comes just before the entry is lost.
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for range 100 {
		if err := unix.Tgkill(unix.Getpid(), thread, unix.SIGURG); err != nil {
			return 0, fmt.Errorf("stop: %w", err)
		}
		select {
		case err := <-done:
			return exited(err)
		case <-tick.C:
		}
	}
	return 0, errors.New("it could not be stopped")
}

// enter runs the guest to its next exit; it touches no memory of the CPU's.
func enter(ctx context.Context, fd int, tid chan<- int, done chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	tid <- unix.Gettid()
	for {
		_, err := ioctl(fd, kvmRun, 0)
		switch {
		case err == nil:
			done <- nil
			return
		case !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN):
			done <- fmt.Errorf("run: %w", err)
			return
		case ctx.Err() != nil:
			done <- errors.New("it did not finish in time")
			return
		}
	}
}

func errOr(err error, text string) error {
	if err != nil {
		return err
	}
	return errors.New(text)
}

func ioctl(fd int, request, arg uintptr) (int, error) {
	v, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, arg)
	if errno != 0 {
		return 0, errno
	}
	return int(v), nil
}

func ioctlPtr(fd int, request uintptr, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}
