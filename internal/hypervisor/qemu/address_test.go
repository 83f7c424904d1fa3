package qemu

import "unsafe"

// address is where b lies in this process.
func address(b []byte) int64 { return int64(uintptr(unsafe.Pointer(&b[0]))) }
