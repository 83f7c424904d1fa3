package archtest

import (
	"slices"
	"strings"
	"testing"
)

// ground knows nothing of banger's rooms and may be stood on by all.
var ground = []string{
	"internal/errs", "internal/fsx", "internal/undo", "internal/proc", "internal/units",
	"internal/paths", "internal/buildinfo", "internal/op", "internal/flight", "internal/event",
}

// arrow says what the packages at or beneath from may import of banger's own.
// The longest from that fits a package counts. "x/..." allows what is beneath.
type arrow struct {
	from string
	may  []string
	why  string
}

// arrows is the house's plan (docs/architecture.md): data comes in by a door
// and goes down; what is not listed is not allowed.
var arrows = []arrow{
	{"cmd/banger", []string{"internal/cli"}, "main only hands the process over"},
	{"cmd/bangerd", []string{"internal/daemon", "internal/shim", "internal/launch", "internal/hypervisor/hosted", "internal/buildinfo", "internal/errs", "internal/paths", "internal/config"}, "one binary is the daemon and the small processes that it starts"},
	{"cmd/banger-vsock-agent", []string{"internal/agent/...", "internal/agent", "internal/guest/link", "internal/guest/wire", "internal/buildinfo"}, "what runs in a guest carries nothing of the host's"},

	{"internal/cli", []string{"internal/cli/...", "internal/apiclient", "internal/api/...", "internal/config", "@ground"}, "the CLI is one client of the API among others: it holds no logic the API lacks"},
	{"internal/cli/ui", []string{"@ground"}, "showing knows nothing of what is shown"},
	{"internal/apiclient", []string{"internal/api/...", "@ground"}, "a client knows the contract only"},
	{"internal/api", []string{"internal/errs", "internal/api/..."}, "the contract depends on nothing that implements it"},
	{"internal/apiserver", []string{"internal/api/...", "internal/config", "internal/doctor", "internal/guest/wire", "internal/image", "internal/kernel", "internal/vm", "internal/workspace", "internal/ssh", "@ground"}, "a door decodes, calls a room, encodes"},

	{"internal/vm", []string{"internal/guest", "internal/guest/wire", "internal/hypervisor", "internal/image", "internal/kernel", "internal/network", "internal/shim", "@ground"}, "the room meets the world through ports; of images and kernels it knows the nouns"},
	{"internal/workspace", []string{"internal/guest", "internal/guest/wire", "@ground"}, "a workspace reaches a guest, never a hypervisor"},
	{"internal/session", []string{"internal/guest", "internal/guest/wire", "@ground"}, "a session is a guest's command"},
	{"internal/filesync", []string{"internal/disk", "internal/guest", "internal/guest/wire", "@ground"}, "files go to a disk or a guest"},
	{"internal/ssh", []string{"@ground"}, "keys and options, no network"},
	{"internal/doctor", []string{"internal/hypervisor", "@ground"}, "a doctor asks, and changes nothing"},
	{"internal/image", []string{"@ground"}, "the noun and its port know no source"},
	{"internal/image/debian", []string{"internal/image", "internal/image/ext4", "internal/image/tarcheck", "internal/aptsource", "internal/npm", "@ground"}, "a source stands on its port and the one pipe for images"},
	{"internal/image/ext4", []string{"internal/image/tarcheck", "@ground"}, "writing what was checked"},
	{"internal/image/tarcheck", []string{"@ground"}, "one place checks what comes in"},
	{"internal/kernel", []string{"internal/kernel/bzimage", "internal/kernel/kmod", "@ground"}, "the noun with its file formats"},
	{"internal/kernel/debian", []string{"internal/kernel", "internal/aptsource", "@ground"}, "a source stands on its port"},
	{"internal/kernel/initramfs", []string{"internal/kernel", "internal/kernel/kmod", "@ground"}, "made per kernel"},
	{"internal/npm", []string{"@ground"}, "fetches one pinned package"},
	{"internal/aptsource", nil, "reads what apt on this host is told"},

	{"internal/hypervisor", []string{"@ground"}, "the port has no guest words"},
	{"internal/hypervisor/choose", []string{"internal/hypervisor", "@ground"}, "picks a driver by its probe"},
	{"internal/hypervisor/kvm", []string{"@ground"}, "proves that KVM works"},
	{"internal/hypervisor/qemu", []string{"internal/hypervisor", "internal/hypervisor/kvm", "internal/hypervisor/qemu/...", "internal/launch", "@ground"}, "an adapter stands on its port"},
	{"internal/hypervisor/qemu/qmp", nil, "a protocol and nothing else"},
	{"internal/hypervisor/firecracker", []string{"internal/hypervisor", "internal/hypervisor/kvm", "internal/launch", "@ground"}, "an adapter stands on its port"},
	{"internal/hypervisor/hosted", []string{"internal/hypervisor", "internal/agent", "internal/guest/link", "internal/guest/wire", "@ground"}, "the fake runs the real agent as a plain process"},
	{"internal/launch", []string{"internal/proc", "internal/errs"}, "what stands between the daemon and a hypervisor's first instruction"},

	{"internal/guest", []string{"internal/guest/link", "internal/guest/mux", "internal/guest/wire", "internal/hypervisor", "@ground"}, "the host's end of the channel; an endpoint is the hypervisor's plain data"},
	{"internal/guest/wire", nil, "both ends speak it: the standard library only"},
	{"internal/guest/link", nil, "frames know no messages"},
	{"internal/guest/mux", []string{"internal/guest/link"}, "streams know frames"},
	{"internal/agent", []string{"internal/agent/...", "internal/guest/link", "internal/guest/mux", "internal/guest/wire", "internal/errs", "internal/buildinfo"}, "the guest's end knows nothing of the host"},

	{"internal/network", []string{"@ground"}, "the port"},
	{"internal/network/userspace", []string{"internal/network", "@ground"}, "an adapter stands on its port"},
	{"internal/shim", []string{"internal/network", "internal/network/userspace", "internal/hypervisor", "@ground"}, "a process of its own, and so the one other place that puts an adapter in"},
	{"internal/disk", []string{"@ground"}, "files that are disks"},
	{"internal/store", []string{"internal/vm", "@ground"}, "implements the rooms' stores; no room imports it"},
	{"internal/config", []string{"@ground"}, "settings decide nothing by themselves"},
	{"internal/daemon", []string{"..."}, "the composition root is the only place that knows everything"},

	{"internal/op", []string{"internal/errs"}, "ground"},
	{"internal/flight", []string{"internal/op", "internal/errs"}, "ground"},
	{"internal/event", []string{"internal/errs"}, "ground"},
	{"internal/fsx", []string{"internal/errs"}, "ground"},
	{"internal/undo", []string{"internal/errs"}, "ground"},
	{"internal/proc", []string{"internal/errs"}, "ground"},
	{"internal/units", []string{"internal/errs"}, "ground"},
	{"internal/paths", []string{"internal/errs"}, "ground"},
	{"internal/errs", nil, "ground"},
	{"internal/buildinfo", nil, "ground"},
	{"images", nil, "recipes as data"},
	{"kernels", nil, "recipes as data"},
}

func TestArrows(t *testing.T) {
	for _, p := range load(t) {
		if p.forTests() {
			continue
		}
		a, ok := arrowOf(p.path)
		if !ok {
			t.Errorf("%s is not on the plan: add it to arrows_test.go, with what it may import and why", p.path)
			continue
		}
		for _, imp := range p.imports {
			if !allowed(a, imp) {
				t.Errorf("%s imports %s, against the plan (%s)", p.path, imp, a.why)
			}
		}
	}
}

// Only the composition root and its tests know it.
func TestNobodyImportsTheTop(t *testing.T) {
	for _, p := range load(t) {
		if slices.Contains(p.imports, "internal/daemon") && p.path != "cmd/bangerd" && !p.forTests() {
			t.Errorf("%s imports internal/daemon", p.path)
		}
		for _, imp := range p.imports {
			if strings.HasSuffix(imp, "test") && !p.forTests() {
				t.Errorf("%s imports %s, which is for tests", p.path, imp)
			}
		}
	}
}

func arrowOf(path string) (arrow, bool) {
	best, found := arrow{}, false
	for _, a := range arrows {
		if (path == a.from || strings.HasPrefix(path, a.from+"/")) && len(a.from) > len(best.from) {
			best, found = a, true
		}
	}
	return best, found
}

func allowed(a arrow, imp string) bool {
	for _, m := range a.may {
		prefix, tree := strings.CutSuffix(m, "...")
		switch {
		case m == "@ground" && slices.Contains(ground, imp):
			return true
		case tree && strings.HasPrefix(imp, prefix):
			return true
		case m == imp:
			return true
		}
	}
	return false
}
