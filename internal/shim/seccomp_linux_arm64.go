package shim

// Calls of this architecture that make processes: clone alone, which the
// filter looks into.
var forks []uint32
