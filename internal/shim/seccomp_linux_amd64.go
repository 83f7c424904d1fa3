package shim

import "golang.org/x/sys/unix"

// Calls of this architecture that make processes.
var forks = []uint32{unix.SYS_FORK, unix.SYS_VFORK}
