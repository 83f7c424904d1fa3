package doctor

import (
	"context"
	"fmt"
	"io/fs"
	"path"
	"sort"
	"strings"
)

// Isolation looks at how the host's kernel keeps VMs apart and how well it can
// hold many: what matters for guests that are not trusted. Nothing here stops
// a VM from running.
func Isolation(h Host) Provider {
	return func(context.Context) []Check {
		list := []Check{h.cgroups(), h.vulnerabilities(), h.ksm(), h.swap(), h.smt(), h.mounts()}
		var out []Check
		for _, c := range list {
			if c.Name != "" {
				out = append(out, c)
			}
		}
		return out
	}
}

func (h Host) cgroups() Check {
	c := Check{Name: "cgroups", Status: OK, Message: "version 2", Why: "with it a VM's processes can be counted and bounded together"}
	if !h.exists("/sys/fs/cgroup/cgroup.controllers") {
		c.Status, c.Message = Info, "version 2 is not mounted"
		c.Fix = []string{"boot with systemd.unified_cgroup_hierarchy=1"}
	}
	return c
}

// vulnerabilities names what the kernel itself calls vulnerable.
func (h Host) vulnerabilities() Check {
	const dir = "sys/devices/system/cpu/vulnerabilities"
	c := Check{Name: "cpu", Status: OK, Message: "the kernel knows no unmitigated flaw", Why: "a guest could read other memory through a flaw of the processor"}
	entries, err := fs.ReadDir(h.Root, dir)
	if err != nil {
		return Check{}
	}
	var bad []string
	for _, e := range entries {
		if strings.HasPrefix(h.read(path.Join("/", dir, e.Name())), "Vulnerable") {
			bad = append(bad, e.Name())
		}
	}
	if len(bad) == 0 {
		return c
	}
	sort.Strings(bad)
	c.Status, c.Message = Warn, "vulnerable: "+strings.Join(bad, ", ")
	c.Fix = []string{"update the kernel and the processor's microcode, boot without mitigations=off; in a VM that is the host's to do"}
	return c
}

func (h Host) ksm() Check {
	c := Check{Name: "ksm", Status: OK, Message: "off", Why: "pages shared between VMs let one find out about another by timing"}
	switch h.read("/sys/kernel/mm/ksm/run") {
	case "":
		return Check{}
	case "1":
		c.Status, c.Message, c.Fix = Info, "on: guests can time each other's pages", []string{h.sudo("sh -c 'echo 2 > /sys/kernel/mm/ksm/run'")}
	}
	return c
}

// swap names swap space that is neither compressed memory nor encrypted.
func (h Host) swap() Check {
	c := Check{Name: "swap", Status: OK, Message: "none on a plain disk", Why: "guests' memory may reach the disk"}
	lines := strings.Split(h.read("/proc/swaps"), "\n")
	if len(lines) < 1 || lines[0] == "" {
		return Check{}
	}
	var plain []string
	for _, l := range lines[1:] {
		f := strings.Fields(l)
		if len(f) == 0 || strings.HasPrefix(f[0], "/dev/zram") || strings.HasPrefix(f[0], "/dev/dm-") || strings.HasPrefix(f[0], "/dev/mapper/") {
			continue
		}
		plain = append(plain, f[0])
	}
	if len(plain) > 0 {
		c.Status, c.Message = Info, "guests' memory may be written to "+strings.Join(plain, ", ")
		c.Fix = []string{h.sudo("swapoff " + plain[0] + "   # or use an encrypted one")}
	}
	return c
}

func (h Host) smt() Check {
	c := Check{Name: "smt", Status: OK, Message: "off", Why: "two VMs on one core's threads share its caches"}
	switch h.read("/sys/devices/system/cpu/smt/active") {
	case "":
		return Check{}
	case "1":
		c.Status, c.Message = Info, "on: guests that do not trust each other share cores"
		c.Fix = []string{h.sudo("sh -c 'echo off > /sys/devices/system/cpu/smt/control'   # costs throughput")}
	}
	return c
}

// manyMounts is where copying the mount table begins to slow process starts.
const manyMounts = 500

func (h Host) mounts() Check {
	n := strings.Count(h.read("/proc/self/mountinfo"), "\n") + 1
	c := Check{Name: "mounts", Status: OK, Message: fmt.Sprintf("%d", n), Why: "each VM's processes copy the mount table"}
	if n > manyMounts {
		c.Status, c.Message, c.Fix = Warn, fmt.Sprintf("%d mounts slow the start of VMs", n), []string{"findmnt   # and unmount what is left over"}
	}
	return c
}
