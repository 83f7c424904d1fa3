package qemu

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/banger-dev/banger/internal/hypervisor"
)

func exampleSpec() hypervisor.Spec {
	return hypervisor.Spec{
		ID: "0123456789abcdef", Dir: "/state/vms/0123,4", SockDir: "/run/vm/0123",
		CPUs: 2, Memory: 1 << 30, KernelHZ: 250, Kernel: "/k/vmlinux", Initrd: "/k/initrd", Cmdline: "quiet banger.x=1",
		Disks: []hypervisor.Disk{{ID: "image", Path: "/i", ReadOnly: true}, {ID: "system", Path: "/s"}},
		Nets: []hypervisor.Netdev{
			{ID: "net0", MAC: "02:00:00:00:00:01", MTU: 1400, File: os.Stdin},
			{ID: "net1", MAC: "02:00:00:00:00:02", TAP: "tap0", File: os.Stdin},
		},
	}
}

func exampleHandles() handles {
	return handles{control: 3, agent: 4, console: 5, consoleSocket: true, kernel: 6, initrd: 7, ram: -1, disks: []int{8, 9}, nets: []int{10, 11}}
}

func emulated(v version) *found {
	return &found{version: v, Host: hypervisor.Host{Driver: Name, Accelerator: hypervisor.Emulation, TSCkHz: 2596100}}
}

// The whole command line of an ordinary machine: a change of it is a change
// of every template's key.
func TestArguments(t *testing.T) {
	got := arguments(exampleSpec(), emulated(version{7, 2, 22}), exampleHandles())
	want := []string{
		"-name", "guest=banger-vm:0123456789abcdef:/state/vms/0123,,4", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-S",
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		"-accel", "tcg,tb-size=256", "-cpu", "max", "-smp", "2", "-m", "1024M", "-rtc", "base=utc",
		"-M", "microvm,rtc=on,x-option-roms=off", "-bios", "qboot.rom", "-kernel", "/proc/self/fd/6",
		"-append", "console=ttyS0 reboot=t panic=-1 tsc_early_khz=2596100 no_timer_check lpj=10384400 quiet banger.x=1",
		"-initrd", "/proc/self/fd/7",
		"-chardev", "socket,id=control,fd=3,server=on,wait=off", "-mon", "chardev=control,mode=control",
		"-chardev", "socket,id=agent,fd=4,server=on,wait=off",
		"-device", "virtio-serial-device,bus=virtio-mmio-bus.23,max_ports=2", "-device", "virtserialport,chardev=agent,name=banger.agent",
		"-chardev", "socket,id=console,fd=5", "-serial", "chardev:console",
		"-add-fd", "fd=8,set=8", "-blockdev", "driver=raw,node-name=disk-image,read-only=on,file.driver=file,file.filename=/dev/fdset/8",
		"-device", "virtio-blk-device,bus=virtio-mmio-bus.22,drive=disk-image,serial=image",
		"-add-fd", "fd=9,set=9", "-blockdev", "driver=raw,node-name=disk-system,read-only=off,discard=unmap,file.driver=file,file.filename=/dev/fdset/9",
		"-device", "virtio-blk-device,bus=virtio-mmio-bus.21,drive=disk-system,serial=system",
		"-netdev", "stream,id=netnet0,server=off,addr.type=fd,addr.str=10",
		"-device", "virtio-net-device,bus=virtio-mmio-bus.20,netdev=netnet0,mac=02:00:00:00:00:01,host_mtu=1400",
		"-netdev", "tap,id=netnet1,fd=11", "-device", "virtio-net-device,bus=virtio-mmio-bus.19,netdev=netnet1,mac=02:00:00:00:00:02",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func has(args []string, option, value string) bool {
	for i := 0; i+1 < len(args); i++ {
		if args[i] == option && args[i+1] == value {
			return true
		}
	}
	return false
}

func TestRAMByVersion(t *testing.T) {
	h := exampleHandles()
	h.ram = 12
	private, shared := hypervisor.RAMFile{Path: "/ram"}, hypervisor.RAMFile{Path: "/ram", Shared: true}
	for _, c := range []struct {
		v    version
		ram  hypervisor.RAMFile
		want string
	}{
		{version{7, 2, 22}, private, ",share=off"},
		{version{8, 1, 5}, private, ",share=off"},
		{version{8, 2, 0}, private, ",share=off,readonly=on,rom=off"},
		{version{10, 0, 13}, private, ",share=off,readonly=on,rom=off"},
		{version{7, 2, 22}, shared, ",share=on"},
		{version{10, 0, 13}, shared, ",share=on"},
	} {
		spec := exampleSpec()
		spec.RAM = c.ram
		args := arguments(spec, emulated(c.v), h)
		if !has(args, "-object", "memory-backend-file,id=ram,size=1024M,mem-path=/proc/self/fd/12"+c.want) ||
			!has(args, "-M", "microvm,rtc=on,x-option-roms=off,memory-backend=ram") {
			t.Errorf("%s, shared %v: %q", c.v, c.ram.Shared, args)
		}
	}
}

// Through a broker QEMU opens the file for writing, in every version, and gets
// it for reading.
func TestBrokeredRAM(t *testing.T) {
	h := exampleHandles()
	h.ram, h.ramBrokered = 12, true
	spec := exampleSpec()
	spec.RAM.Path = "/ram"
	args := arguments(spec, emulated(version{10, 0, 13}), h)
	if !has(args, "-object", "memory-backend-file,id=ram,size=1024M,mem-path=/proc/self/fd/12,share=off") {
		t.Errorf("%q", args)
	}
}

func TestKVMNeedsNoHelpWithClocks(t *testing.T) {
	host := emulated(version{10, 0, 0})
	host.Accelerator, host.TSCkHz = hypervisor.KVM, 0
	args := arguments(exampleSpec(), host, exampleHandles())
	if !has(args, "-accel", "kvm") || !has(args, "-cpu", "host") || strings.Contains(strings.Join(args, " "), "tsc") {
		t.Errorf("%q", args)
	}
}

func TestRestoreWaitsForItsState(t *testing.T) {
	spec := exampleSpec()
	spec.Restore = &hypervisor.Restore{Devices: "/d"}
	args := arguments(spec, emulated(version{7, 2, 0}), exampleHandles())
	if !has(args, "-incoming", "defer") || !has(args, "-global", "migration.send-configuration=off") {
		t.Errorf("%q", args)
	}
}

func TestConsoleFile(t *testing.T) {
	h := exampleHandles()
	h.consoleSocket = false
	args := arguments(exampleSpec(), emulated(version{7, 2, 0}), h)
	if !has(args, "-add-fd", "fd=5,set=5") || !has(args, "-chardev", "file,id=console,path=/dev/fdset/5,append=on") {
		t.Errorf("%q", args)
	}
	h.console = -1
	if args = arguments(exampleSpec(), emulated(version{7, 2, 0}), h); !has(args, "-serial", "null") {
		t.Errorf("%q", args)
	}
}

func TestLoopsFollowTheKernelsHZ(t *testing.T) {
	host := emulated(version{7, 2, 0}).Host
	for hz, want := range map[int]string{0: "lpj=10384400", 250: "lpj=10384400", 1000: "lpj=2596100", 100: "lpj=25961000"} {
		spec := exampleSpec()
		spec.KernelHZ = hz
		if got := cmdline(spec, host); !strings.Contains(got, want+" ") {
			t.Errorf("HZ %d: %q", hz, got)
		}
	}
}

func TestReliableClockOfOneCPU(t *testing.T) {
	host := emulated(version{7, 2, 0}).Host
	for cpus, want := range map[int]bool{1: true, 2: false} {
		spec := exampleSpec()
		spec.CPUs = cpus
		if got := cmdline(spec, host); strings.Contains(got, " tsc=reliable ") != want {
			t.Errorf("%d cpus: %q", cpus, got)
		}
	}
}

func TestCodeBufferAsAsked(t *testing.T) {
	spec := exampleSpec()
	spec.CodeBuffer = 100 << 20
	if args := arguments(spec, emulated(version{7, 2, 0}), exampleHandles()); !has(args, "-accel", "tcg,tb-size=100") {
		t.Errorf("%q", args)
	}
}
