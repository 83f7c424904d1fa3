package vm

import (
	"fmt"
	"strings"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/hypervisor"
)

// HostSize is what the host has, and what its hypervisor stands.
type HostSize struct {
	Cores      int
	Memory     int64 // bytes of RAM
	Available  int64 // bytes that could be had now
	Hypervisor hypervisor.Host
}

// beside is what a hypervisor takes beside a guest's RAM of that size: the
// emulator's code buffer and the program itself.
func (h HostSize) beside(memory int64) int64 {
	return hypervisor.Budget(h.Hypervisor.Accelerator, memory, 0) - memory
}

// Defaults are the sizes and choices of the configuration; zero means none.
type Defaults struct {
	Image   string
	Kernel  string // "" is the image's own
	CPUs    int
	Memory  int64
	Disk    int64
	Network string
}

// Limits of what a VM may be asked to be.
const (
	MiB           = int64(1) << 20
	GiB           = int64(1) << 30
	MinMemory     = 128 * MiB
	DefaultMinMem = 512 * MiB
	DefaultMaxMem = 8 * GiB
	MinDisk       = 64 * MiB
	MaxDisk       = 16 << 40
	DefaultDisk   = 20 * GiB
	MaxBootArgs   = 64
	MaxEnv        = 1024
	MaxEnvBytes   = 128 << 10
	MaxLabels     = 64
)

// Origins of a value.
const (
	FromHost   = "host"
	FromConfig = "config"
	FromFlag   = "flag"
)

// Resolve fills in what was not asked for and refuses what cannot be. Nothing
// is written before it has passed.
func Resolve(asked Spec, d Defaults, h HostSize) (Spec, error) {
	s := asked
	s.Origin = map[string]string{}
	s.Image = choose(s.Origin, "image", asked.Image, d.Image, "debian-bookworm")
	if asked.Kernel != "" || d.Kernel != "" {
		s.Kernel = choose(s.Origin, "kernel", asked.Kernel, d.Kernel, "")
	}
	s.Network = choose(s.Origin, "network", asked.Network, d.Network, "user")
	s.CPUs = choose(s.Origin, "cpus", asked.CPUs, d.CPUs, defaultCPUs(h))
	s.Memory = choose(s.Origin, "memory", asked.Memory, d.Memory, defaultMemory(h))
	s.Disk = choose(s.Origin, "disk", asked.Disk, d.Disk, DefaultDisk)
	for _, check := range []func(*Spec, HostSize) error{checkCPUs, checkMemory, checkDisk, checkRest} {
		if err := check(&s, h); err != nil {
			return Spec{}, err
		}
	}
	return s, nil
}

func choose[T comparable](origin map[string]string, key string, asked, config, host T) T {
	var zero T
	switch {
	case asked != zero:
		origin[key] = FromFlag
		return asked
	case config != zero:
		origin[key] = FromConfig
		return config
	}
	origin[key] = FromHost
	return host
}

// defaultCPUs is a quarter of the host's cores, at least one, at most four and
// at most what the kernel is known to stand under this accelerator.
func defaultCPUs(h HostSize) int {
	n := min(max(h.Cores/4, 1), 4)
	if safe := h.Hypervisor.Caps.SafeCPUs; safe > 0 {
		n = min(n, safe)
	}
	return n
}

// defaultMemory is an eighth of the host's RAM, between 512 MiB and 8 GiB; the
// emulator's code buffer comes out of that eighth.
func defaultMemory(h HostSize) int64 {
	n := min(h.Memory/8, DefaultMaxMem)
	n -= h.beside(n)
	n = max(n, DefaultMinMem)
	return n &^ (64*MiB - 1)
}

func checkCPUs(s *Spec, h HostSize) error {
	limit := 32
	if m := h.Hypervisor.Caps.MaxCPUs; m > 0 {
		limit = min(limit, m)
	}
	limit = min(limit, max(4*h.Cores, 1))
	if s.CPUs < 1 || s.CPUs > limit {
		return errs.New(errs.Invalid, "vm_cpus_invalid", "cpus: %d is not between 1 and %d (this host has %d)", s.CPUs, limit, h.Cores).
			WithHint("for example: --cpus %d", defaultCPUs(h))
	}
	return nil
}

func checkMemory(s *Spec, h HostSize) error {
	hint := fmt.Sprintf("for example: --memory %s", Size(defaultMemory(h)))
	if s.Memory < MinMemory {
		return errs.New(errs.Invalid, "vm_memory_invalid", "memory: %s is less than the %s a guest needs", Size(s.Memory), Size(MinMemory)).WithHint("%s", hint)
	}
	if s.Memory > h.Memory {
		return errs.New(errs.Invalid, "vm_memory_invalid", "memory: %s is more than this host has (%s)", Size(s.Memory), Size(h.Memory)).WithHint("%s", hint)
	}
	s.Memory = (s.Memory + MiB - 1) &^ (MiB - 1)
	return nil
}

func checkDisk(s *Spec, _ HostSize) error {
	if s.Disk < MinDisk || s.Disk > MaxDisk {
		return errs.New(errs.Invalid, "vm_disk_invalid", "disk: %s is not between %s and %s", Size(s.Disk), Size(MinDisk), Size(MaxDisk)).
			WithHint("for example: --disk %s", Size(DefaultDisk))
	}
	s.Disk = (s.Disk + MiB - 1) &^ (MiB - 1)
	return nil
}

func checkRest(s *Spec, _ HostSize) error {
	if s.Network != "user" && s.Network != "none" {
		return errs.New(errs.Invalid, "vm_network_invalid", "network: %q is not user or none", clip(s.Network, 40)).WithHint("for example: --network user")
	}
	if len(s.BootArgs) > MaxBootArgs {
		return errs.New(errs.Invalid, "vm_boot_args_invalid", "boot args: more than %d", MaxBootArgs).WithHint("give fewer --boot-arg")
	}
	for _, a := range s.BootArgs {
		if a == "" || len(a) > 512 || strings.ContainsFunc(a, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == '"' }) {
			return errs.New(errs.Invalid, "vm_boot_args_invalid", "boot arg %q: printable ASCII without spaces or quotes, at most 512 bytes", clip(a, 80)).
				WithHint("give each one apart: --boot-arg quiet --boot-arg loglevel=3")
		}
	}
	return CheckEnv(s.Env)
}

// CheckEnv refuses variables that no environment can carry.
func CheckEnv(env []EnvVar) error {
	total := 0
	for _, e := range env {
		total += len(e.Name) + len(e.Value) + 2
		if e.Name == "" || strings.ContainsAny(e.Name, "=\x00") || strings.ContainsRune(e.Value, 0) {
			return errs.New(errs.Invalid, "env_invalid", "environment: %q is no variable name", clip(e.Name, 40)).WithHint("--env NAME=VALUE")
		}
	}
	if len(env) > MaxEnv || total > MaxEnvBytes {
		return errs.New(errs.Invalid, "env_invalid", "environment: more than %d variables or %s", MaxEnv, Size(MaxEnvBytes)).WithHint("put it in a file and copy that: banger vm cp")
	}
	return nil
}

// CheckLabels refuses labels that would not fit a line of a list.
func CheckLabels(labels map[string]string) error {
	if len(labels) > MaxLabels {
		return errs.New(errs.Invalid, "label_invalid", "labels: more than %d", MaxLabels).WithHint("give fewer --label")
	}
	for k, v := range labels {
		bad := func(s string) bool {
			return len(s) > 256 || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f })
		}
		if k == "" || strings.ContainsAny(k, "= ") || bad(k) || bad(v) {
			return errs.New(errs.Invalid, "label_invalid", "label %q: a name without = and spaces, and a value of one line, each at most 256 bytes", clip(k, 40)).
				WithHint("--label team=web")
		}
	}
	return nil
}

// checkRoom refuses a start that this host's memory has no room for now.
func checkRoom(name string, s Spec, h HostSize) error {
	need := s.Memory + h.beside(s.Memory)
	if h.Available > 0 && need > h.Available {
		return errs.New(errs.Exhausted, "host_memory", "cannot start %q: %s asked for, %s of this host's memory is free", name, Size(need), Size(h.Available)).
			WithHint("stop another VM, or: banger vm set %s --memory %s", name, Size(max(MinMemory, h.Available/2&^(64*MiB-1))))
	}
	return nil
}

// Size writes bytes as people read them: 512M, 2.0G.
func Size(n int64) string {
	switch {
	case n >= 1<<40:
		return fmt.Sprintf("%.1fT", float64(n)/(1<<40))
	case n >= GiB:
		return fmt.Sprintf("%.1fG", float64(n)/float64(GiB))
	case n >= MiB:
		return fmt.Sprintf("%dM", n/MiB)
	case n >= 1024:
		return fmt.Sprintf("%dK", n/1024)
	}
	return fmt.Sprintf("%d bytes", n)
}
