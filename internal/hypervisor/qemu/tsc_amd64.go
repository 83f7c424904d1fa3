package qemu

const hasTSC = true

// rdtsc reads the time stamp counter, after all loads before it.
//
//go:noescape
func rdtsc() uint64
