package disks

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

func ioctlPointer(f *os.File, request uintptr, v *uint64) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(unsafe.Pointer(v)))
	if errno != 0 {
		return errno
	}
	return nil
}
