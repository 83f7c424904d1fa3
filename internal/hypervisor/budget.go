package hypervisor

const mib = 1 << 20

// Bounds of the emulator's code buffer; docs/decisions/0012-code-buffer.md has
// the measurement.
const (
	minCodeBuffer = 64 * mib
	maxCodeBuffer = 256 * mib
)

// CodeBufferFor is the rule by which an emulator's code buffer is bounded: a
// quarter of the guest's memory, at least 64 MiB and at most 256 MiB, whole
// MiB; 0 under KVM, which has none.
func CodeBufferFor(acc Accelerator, memory int64) int64 {
	if acc != Emulation {
		return 0
	}
	return min(max(memory/4/mib*mib, minCodeBuffer), maxCodeBuffer)
}

// overhead is what a hypervisor needs for itself beside RAM and code buffer.
const overhead = 48 * mib

// Budget is the most memory of the host, in bytes, that a machine can come to
// hold: guest RAM, the emulator's code buffer and the hypervisor itself.
// codeBuffer 0 means the rule's.
func Budget(acc Accelerator, memory, codeBuffer int64) int64 {
	if codeBuffer == 0 || acc != Emulation {
		codeBuffer = CodeBufferFor(acc, memory)
	}
	return memory + codeBuffer + overhead
}
