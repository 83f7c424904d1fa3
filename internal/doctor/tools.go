package doctor

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// oldestQEMU is the first version whose microvm machine banger is tested with.
var oldestQEMU = [2]int{7, 2}

var qemuVersion = regexp.MustCompile(`version (\d+)\.(\d+)(?:\.\d+)*`)

// QEMU checks the program bin ("" for the one on PATH). needed says that VMs
// run with it in this set-up.
func QEMU(h Host, bin string, needed bool) Provider {
	return func(ctx context.Context) []Check {
		c := Check{Name: "qemu", Status: OK, Why: "it runs the VMs where Firecracker cannot"}
		bad := Warn
		if needed {
			c.Why, bad = "it runs the VMs", Fail
		}
		if bin == "" {
			bin = "qemu-system-x86_64"
		}
		p := h.find(bin)
		if p == "" {
			c.Status, c.Message, c.Fix = bad, bin+" is not there", h.install("qemu")
			if strings.Contains(bin, "/") {
				c.Fix = append(c.Fix, "or correct qemu_bin: banger config edit")
			}
			return []Check{c}
		}
		out, err := h.Run(ctx, p, "--version")
		m := qemuVersion.FindStringSubmatch(out)
		if err != nil || m == nil {
			c.Status, c.Message, c.Fix = bad, fmt.Sprintf("%s does not say its version: %s", p, firstLine(out, err)), h.install("qemu")
			return []Check{c}
		}
		version := strings.TrimPrefix(m[0], "version ")
		major, _ := strconv.Atoi(m[1])
		minor, _ := strconv.Atoi(m[2])
		machines, err := h.Run(ctx, p, "-machine", "help")
		switch {
		case err != nil || !strings.Contains("\n"+machines, "\nmicrovm "):
			c.Status, c.Message, c.Fix = bad, fmt.Sprintf("%s (%s) has no microvm machine", p, version), h.install("qemu")
		case major < oldestQEMU[0] || (major == oldestQEMU[0] && minor < oldestQEMU[1]):
			c.Status, c.Fix = Warn, h.install("qemu")
			c.Message = fmt.Sprintf("%s is older than %d.%d, with which banger is tested", version, oldestQEMU[0], oldestQEMU[1])
		default:
			c.Message = version + ", microvm machine"
		}
		return []Check{c}
	}
}

// KVM tells what the drivers' probe proved: why is one line when KVM is not
// used.
func KVM(h Host, usable bool, why string) Provider {
	return func(context.Context) []Check {
		c := Check{Name: "kvm", Status: OK, Message: "a test guest ran", Why: "with it VMs run at the processor's own speed, about ten times faster than emulated"}
		if usable {
			return []Check{c}
		}
		c.Status, c.Message = Warn, oneLine(why)+"; software emulation is used"
		switch flags := " " + h.cpuFlags() + " "; {
		case strings.Contains(flags, " svm "):
			c.Fix = h.kvmFix("kvm_amd")
		case strings.Contains(flags, " vmx "):
			c.Fix = h.kvmFix("kvm_intel")
		case strings.Contains(flags, " hypervisor "):
			c.Fix = []string{"use a machine with nested virtualization; there is nothing to mend on this one"}
		default:
			c.Fix = []string{"switch virtualization (AMD-V, VT-x) on in the firmware"}
		}
		return []Check{c}
	}
}

func (h Host) cpuFlags() string {
	for line := range strings.SplitSeq(h.read("/proc/cpuinfo"), "\n") {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "flags" {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

func (h Host) kvmFix(module string) []string {
	if !h.exists("/dev/kvm") {
		return []string{h.sudo("modprobe " + module)}
	}
	if h.UID == 0 {
		return nil
	}
	user := h.User
	if user == "" {
		user = "$USER"
	}
	return []string{"sudo usermod -aG kvm " + user + "   # then log in again"}
}

// Firecracker checks the program bin ("" for the one on PATH). needed says
// that the settings ask for it by name.
func Firecracker(h Host, bin string, needed bool) Provider {
	return func(ctx context.Context) []Check {
		c := Check{Name: "firecracker", Status: OK, Why: "with KVM it starts VMs soonest and keeps each behind a small program"}
		named := bin != ""
		if !named {
			bin = "firecracker"
		}
		p := h.find(bin)
		if p == "" {
			c.Status, c.Message = Info, "not installed; QEMU is used, nothing is missing"
			if needed || named {
				c.Status, c.Message = Fail, bin+" is not there, and the settings ask for it"
				c.Fix = []string{"install Firecracker's release, or: banger config edit"}
			}
			return []Check{c}
		}
		out, err := h.Run(ctx, p, "--version")
		if err != nil {
			c.Status, c.Message = Warn, fmt.Sprintf("%s does not run: %s", p, firstLine(out, err))
			if needed {
				c.Status = Fail
			}
			return []Check{c}
		}
		c.Message = firstLine(out, nil)
		return []Check{c}
	}
}

// Tool is a program that banger runs.
type Tool struct {
	Name     string   // of the check and of the program
	Thing    string   // key of the package that brings it
	Why      string   // why it matters
	Version  []string // arguments that make it say its version; nil: being there is enough
	Optional bool     // Warn in place of Fail
}

// The tools of an ordinary set-up.
var (
	ToolSSH       = Tool{Name: "ssh", Thing: "ssh", Why: "banger vm ssh, rsync and editors use it; banger shell does without", Version: []string{"-V"}, Optional: true}
	ToolGit       = Tool{Name: "git", Thing: "git", Why: "vm run PATH takes a repository into the VM", Version: []string{"--version"}, Optional: true}
	ToolE2fsprogs = Tool{Name: "mke2fs", Thing: "e2fsprogs", Why: "every VM's disks are formatted with it", Version: []string{"-V"}}
)

// Program checks that a tool is there and runs.
func Program(h Host, t Tool) Provider {
	return func(ctx context.Context) []Check {
		c := Check{Name: t.Name, Status: OK, Why: t.Why}
		bad := Fail
		if t.Optional {
			bad = Warn
		}
		p := h.find(t.Name)
		if p == "" {
			c.Status, c.Message, c.Fix = bad, "not installed", h.install(t.Thing)
			return []Check{c}
		}
		c.Message = p
		if t.Version != nil {
			out, err := h.Run(ctx, p, t.Version...)
			c.Message = firstLine(out, nil)
			if err != nil {
				c.Status, c.Message, c.Fix = bad, p+" does not run: "+firstLine(out, err), h.install(t.Thing)
			}
		}
		return []Check{c}
	}
}

func firstLine(out string, err error) string {
	line, _, _ := strings.Cut(strings.TrimSpace(out), "\n")
	if line == "" && err != nil {
		line = err.Error()
	}
	return oneLine(line)
}
