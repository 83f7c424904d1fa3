package qemu

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/banger-dev/banger/internal/hypervisor"
	"github.com/banger-dev/banger/internal/proc"
)

// files are the open files that QEMU is given, with the descriptor numbers
// they have there.
type files struct{ list []*os.File }

// firstFile is the first descriptor after the standard streams.
const firstFile = 3

func (f *files) add(file *os.File) int {
	f.list = append(f.list, file)
	return firstFile + len(f.list) - 1
}

func (f *files) close() {
	for _, file := range f.list {
		file.Close()
	}
	f.list = nil
}

// handles are the numbers of the descriptors that the command line names;
// -1 for none.
type handles struct {
	control, agent, console int
	consoleSocket           bool // console is a connected socket, not a file
	ramBrokered             bool // the RAM file is opened through a broker
	kernel, initrd, ram     int
	disks, nets             []int
}

// hertz is the kernel's tick rate when the Spec names none.
const hertz = 250

// cmdline is the kernel's command line: what the driver knows of the machine,
// then what the boot chain asked for, which so may override it.
func cmdline(spec hypervisor.Spec, host hypervisor.Host) string {
	words := []string{"console=ttyS0", "reboot=t", "panic=-1"}
	if host.Accelerator == hypervisor.Emulation && host.TSCkHz > 0 {
		// Under emulation the guest's TSC is the host's. A guest that is
		// told its rate calibrates nothing, which is where boots hang on a
		// busy host (docs/decisions/0011-emulated-clocks.md).
		hz := spec.KernelHZ
		if hz == 0 {
			hz = hertz
		}
		words = append(words, fmt.Sprintf("tsc_early_khz=%d", host.TSCkHz), "no_timer_check",
			fmt.Sprintf("lpj=%d", host.TSCkHz*1000/uint64(hz)))
		if spec.CPUs == 1 {
			// Told so, it does not give the TSC up for a clock of 4 ms.
			// Guests of two CPUs that were told it stopped answering.
			words = append(words, "tsc=reliable")
		}
	}
	if spec.Cmdline != "" {
		words = append(words, spec.Cmdline)
	}
	return strings.Join(words, " ")
}

// arguments is QEMU's command line after argv[0].
func arguments(spec hypervisor.Spec, host *found, h handles) []string {
	mem := spec.Memory >> 20
	machine := "microvm,rtc=on,x-option-roms=off"
	// The marker is argv[0] too, but a QEMU behind a script loses that.
	name := "guest=" + strings.ReplaceAll(marker(spec), ",", ",,")
	args := []string{"-name", name, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-S"}
	add := func(a ...string) { args = append(args, a...) }
	add("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
	if host.Accelerator == hypervisor.KVM {
		add("-accel", "kvm", "-cpu", "host")
	} else {
		add("-accel", fmt.Sprintf("tcg,tb-size=%d", codeBuffer(spec, host.Accelerator)>>20), "-cpu", "max")
	}
	add("-smp", strconv.Itoa(spec.CPUs), "-m", fmt.Sprintf("%dM", mem), "-rtc", "base=utc")
	if h.ram >= 0 {
		machine += ",memory-backend=ram"
		add("-object", ramObject(spec, host, h))
	}
	// qboot, as the default firmware of newer QEMUs does not start a
	// kernel here, and of older ones is slower.
	add("-M", machine, "-bios", "qboot.rom")
	if h.kernel >= 0 { // none for a clone: its RAM has it, and it starts sooner
		add("-kernel", procFD(h.kernel), "-append", cmdline(spec, host.Host))
	}
	if h.initrd >= 0 {
		add("-initrd", procFD(h.initrd))
	}
	add(channels(h)...)
	add(devices(spec, h)...)
	if spec.Restore != nil {
		// A device-only state has no configuration section.
		add("-incoming", "defer", "-global", "migration.send-configuration=off")
	}
	return args
}

// marker is by what the machine's process is found without a Ref.
func marker(spec hypervisor.Spec) string { return proc.Marker{VM: spec.ID, Dir: spec.Dir}.String() }

// codeBuffer is the bound of the translation buffer in bytes, 0 under KVM.
func codeBuffer(spec hypervisor.Spec, acc hypervisor.Accelerator) int64 {
	if acc == hypervisor.Emulation && spec.CodeBuffer > 0 {
		return spec.CodeBuffer
	}
	return hypervisor.CodeBufferFor(acc, spec.Memory)
}

// procFD names a passed file for what QEMU opens with plain open(2).
func procFD(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

func ramObject(spec hypervisor.Spec, host *found, h handles) string {
	o := fmt.Sprintf("memory-backend-file,id=ram,size=%dM,mem-path=%s", spec.Memory>>20, procFD(h.ram))
	switch {
	case spec.RAM.Shared:
		return o + ",share=on"
	case host.version.has(privateReadOnly) && !h.ramBrokered:
		return o + ",share=off,readonly=on,rom=off"
	}
	return o + ",share=off"
}

// lastBus is the last of microvm's 24 transports. Linux numbers devices from
// the last transport down, and finds none on transport 0.
const lastBus = 23

// channels are the control socket, the agent's port and the console.
func channels(h handles) []string {
	args := []string{
		"-chardev", fmt.Sprintf("socket,id=control,fd=%d,server=on,wait=off", h.control),
		"-mon", "chardev=control,mode=control",
		"-chardev", fmt.Sprintf("socket,id=agent,fd=%d,server=on,wait=off", h.agent),
		"-device", fmt.Sprintf("virtio-serial-device,bus=virtio-mmio-bus.%d,max_ports=2", lastBus),
		"-device", "virtserialport,chardev=agent,name=" + hypervisor.AgentPort,
	}
	switch {
	case h.console < 0:
		return append(args, "-serial", "null")
	case h.consoleSocket:
		return append(args, "-chardev", fmt.Sprintf("socket,id=console,fd=%d", h.console), "-serial", "chardev:console")
	}
	return append(args, "-add-fd", fmt.Sprintf("fd=%d,set=%d", h.console, h.console),
		"-chardev", fmt.Sprintf("file,id=console,path=/dev/fdset/%d,append=on", h.console), "-serial", "chardev:console")
}

// devices are the disks and NICs, each on a transport of its own.
func devices(spec hypervisor.Spec, h handles) []string {
	var args []string
	bus := lastBus - 1
	for i, d := range spec.Disks {
		mode := "read-only=off,discard=unmap"
		if d.ReadOnly {
			mode = "read-only=on"
		}
		fd := h.disks[i]
		args = append(args, "-add-fd", fmt.Sprintf("fd=%d,set=%d", fd, fd),
			"-blockdev", fmt.Sprintf("driver=raw,node-name=%s,%s,file.driver=file,file.filename=/dev/fdset/%d", blockNode(d.ID), mode, fd),
			"-device", fmt.Sprintf("virtio-blk-device,bus=virtio-mmio-bus.%d,drive=%s,serial=%s", bus, blockNode(d.ID), d.ID))
		bus--
	}
	for i, n := range spec.Nets {
		kind := fmt.Sprintf("stream,id=net%s,server=off,addr.type=fd,addr.str=%d", n.ID, h.nets[i])
		if n.TAP != "" {
			kind = fmt.Sprintf("tap,id=net%s,fd=%d", n.ID, h.nets[i])
		}
		nic := fmt.Sprintf("virtio-net-device,bus=virtio-mmio-bus.%d,netdev=net%s,mac=%s", bus, n.ID, n.MAC)
		if n.MTU != 0 {
			nic += fmt.Sprintf(",host_mtu=%d", n.MTU)
		}
		args = append(args, "-netdev", kind, "-device", nic)
		bus--
	}
	return args
}

// blockNode is the name of a disk's block node.
func blockNode(id string) string { return "disk-" + id }
