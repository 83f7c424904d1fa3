// Package kernel is the noun: a bootable kernel with its modules and the
// initramfs that banger builds for it, kept by digest.
package kernel

// Manifest describes a kernel; it lies beside its files as manifest.json.
type Manifest struct {
	Schema  int    `json:"schema"`  // 1
	Name    string `json:"name"`    // "generic-6.12"
	Release string `json:"release"` // uname -r
	Digest  string `json:"digest"`  // "sha256:…" over the files' digests
	HZ      int    `json:"hz"`      // CONFIG_HZ, for lpj
	// SafeSMP says that the kernel stands several vCPUs under emulation
	// (built without jump labels).
	SafeSMP bool              `json:"safe_smp"`
	Source  string            `json:"source"` // package and version
	Created string            `json:"created"`
	Files   map[string]string `json:"files"` // name → sha256
	Size    int64             `json:"size"`
}

// Kernel is a stored kernel.
type Kernel struct {
	Names    []string
	Manifest Manifest
	VMLinux  string // ELF kernel
	Modules  string // read-only ext4 that is mounted at /lib/modules/RELEASE
	// BootModules is the directory with the modules the initramfs needs.
	BootModules string
}
