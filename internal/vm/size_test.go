package vm

import (
	"strings"
	"testing"

	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/hypervisor"
)

func kvmHost(cores int, memory int64) HostSize {
	return HostSize{Cores: cores, Memory: memory, Available: memory / 2, Hypervisor: hypervisor.Host{Accelerator: hypervisor.KVM, Caps: hypervisor.Caps{MaxCPUs: 32, SafeCPUs: 32}}}
}

func emulatedHost(cores int, memory int64) HostSize {
	h := kvmHost(cores, memory)
	h.Hypervisor.Accelerator = hypervisor.Emulation
	h.Hypervisor.Caps = hypervisor.Caps{MaxCPUs: 8, SafeCPUs: 1, CodeBuffer: true}
	return h
}

func TestSizesAreDerivedFromTheHost(t *testing.T) {
	for _, c := range []struct {
		host HostSize
		cpus int
		mem  int64 // at most
	}{
		{kvmHost(2, 4*GiB), 1, 512 * MiB},
		{kvmHost(16, 64*GiB), 4, 8 * GiB},
		{kvmHost(64, 512*GiB), 4, 8 * GiB},
		{kvmHost(8, 24*GiB), 2, 3 * GiB},
		{emulatedHost(16, 24*GiB), 1, 3 * GiB},
	} {
		s, err := Resolve(Spec{}, Defaults{}, c.host)
		if err != nil {
			t.Fatal(err)
		}
		whole := hypervisor.Budget(c.host.Hypervisor.Accelerator, s.Memory, 0)
		if s.CPUs != c.cpus || s.Memory > c.mem || s.Memory < DefaultMinMem || (s.Memory > DefaultMinMem && whole > c.mem) {
			t.Errorf("%d cores, %s: %d cpus, %s (%s in all)", c.host.Cores, Size(c.host.Memory), s.CPUs, Size(s.Memory), Size(whole))
		}
		if s.Origin["cpus"] != FromHost || s.Origin["memory"] != FromHost || s.Disk != DefaultDisk {
			t.Errorf("origin %v", s.Origin)
		}
	}
}

func TestAFlagBeatsTheConfigAndSaysSo(t *testing.T) {
	s, err := Resolve(Spec{CPUs: 3}, Defaults{CPUs: 2, Memory: GiB, Image: "mine"}, kvmHost(8, 24*GiB))
	if err != nil {
		t.Fatal(err)
	}
	if s.CPUs != 3 || s.Origin["cpus"] != FromFlag || s.Memory != GiB || s.Origin["memory"] != FromConfig || s.Image != "mine" {
		t.Fatalf("%+v", s)
	}
}

// Lesson 20, and the "bad input": each absurd value has its own code
// and a next step, before anything is written.
func TestAbsurdValuesAreRefused(t *testing.T) {
	h := kvmHost(4, 8*GiB)
	for name, c := range map[string]struct {
		spec Spec
		code string
	}{
		"cpus below":       {Spec{CPUs: -1}, "vm_cpus_invalid"},
		"cpus above":       {Spec{CPUs: 1 << 30}, "vm_cpus_invalid"},
		"cpus over host":   {Spec{CPUs: 17}, "vm_cpus_invalid"},
		"memory below":     {Spec{Memory: 1}, "vm_memory_invalid"},
		"memory negative":  {Spec{Memory: -GiB}, "vm_memory_invalid"},
		"memory over host": {Spec{Memory: 9 * GiB}, "vm_memory_invalid"},
		"memory max":       {Spec{Memory: 1<<63 - 1}, "vm_memory_invalid"},
		"disk below":       {Spec{Disk: 1}, "vm_disk_invalid"},
		"disk negative":    {Spec{Disk: -1}, "vm_disk_invalid"},
		"disk max":         {Spec{Disk: 1<<63 - 1}, "vm_disk_invalid"},
		"network":          {Spec{Network: "bridge;rm"}, "vm_network_invalid"},
		"boot arg space":   {Spec{BootArgs: []string{"a b"}}, "vm_boot_args_invalid"},
		"boot arg newline": {Spec{BootArgs: []string{"a\n"}}, "vm_boot_args_invalid"},
		"boot arg empty":   {Spec{BootArgs: []string{""}}, "vm_boot_args_invalid"},
		"boot args many":   {Spec{BootArgs: make([]string, MaxBootArgs+1)}, "vm_boot_args_invalid"},
		"env name":         {Spec{Env: []EnvVar{{Name: "a=b"}}}, "env_invalid"},
		"env NUL":          {Spec{Env: []EnvVar{{Name: "a", Value: "\x00"}}}, "env_invalid"},
		"env long":         {Spec{Env: []EnvVar{{Name: "a", Value: strings.Repeat("x", MaxEnvBytes)}}}, "env_invalid"},
	} {
		_, err := Resolve(c.spec, Defaults{}, h)
		if errs.CodeOf(err) != c.code || errs.KindOf(err) != errs.Invalid || errs.HintOf(err) == "" || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v (hint %q)", name, err, errs.HintOf(err))
		}
	}
}

func TestLabelsFitALine(t *testing.T) {
	if err := CheckLabels(map[string]string{"team": "web", "a/b": ""}); err != nil {
		t.Fatal(err)
	}
	for _, l := range []map[string]string{{"": "x"}, {"a=b": "x"}, {"a b": "x"}, {"a": "x\ny"}, {"a": strings.Repeat("x", 257)}} {
		if errs.CodeOf(CheckLabels(l)) != "label_invalid" {
			t.Errorf("%q passed", l)
		}
	}
}

func TestAStartWithoutRoomSaysHowMuchThereIs(t *testing.T) {
	h := emulatedHost(2, 24*GiB)
	h.Available = 2 * GiB
	err := checkRoom("web", Spec{Memory: 2 * GiB}, h)
	if errs.CodeOf(err) != "host_memory" || !strings.Contains(err.Error(), "2.0G of this host's memory is free") || !strings.Contains(errs.HintOf(err), "banger vm set web --memory") {
		t.Fatalf("%v / %s", err, errs.HintOf(err))
	}
	if err := checkRoom("web", Spec{Memory: GiB}, h); err != nil {
		t.Fatal(err)
	}
}
