package doctor_test

import (
	"context"
	"errors"
	"io/fs"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"

	"github.com/banger-dev/banger/internal/doctor"
	"github.com/banger-dev/banger/internal/errs"
)

const gib = 1 << 30

// answers are what programs say, by "name args".
type answers map[string]string

// host builds a Debian host with the files (content) and programs given.
func host(files map[string]string, programs answers) doctor.Host {
	m := fstest.MapFS{"etc/os-release": {Data: []byte("ID=debian\nVERSION_ID=\"12\"\n")}}
	for p, s := range files {
		m[p] = &fstest.MapFile{Data: []byte(s), Mode: 0o644}
	}
	for line := range programs {
		name, _, _ := strings.Cut(line, " ")
		m["usr/bin/"+name] = &fstest.MapFile{Mode: 0o755}
	}
	return doctor.Host{
		Root: m, UID: 1000, User: "ann", Path: "/usr/bin:relative",
		Free: func(string) (int64, error) { return 10 * gib, nil },
		Run: func(_ context.Context, name string, args ...string) (string, error) {
			out, ok := programs[strings.TrimPrefix(name, "/usr/bin/")+" "+strings.Join(args, " ")]
			if !ok || strings.HasPrefix(out, "!") {
				return strings.TrimPrefix(out, "!"), errors.New("exit status 1")
			}
			return out, nil
		},
	}
}

// one runs a provider and gives the check of that name.
func one(t *testing.T, name string, p doctor.Provider) doctor.Check {
	t.Helper()
	r := doctor.Run(t.Context(), []doctor.Provider{p})
	for _, c := range r.Checks {
		if c.Status != doctor.OK && c.Status != doctor.Info && c.Status != doctor.Warn && c.Status != doctor.Fail {
			t.Errorf("%s: status %q", c.Name, c.Status)
		}
		if strings.ContainsAny(c.Message, "\n\x1b") || c.Message == "" || c.Why == "" {
			t.Errorf("%s: message %q, why %q", c.Name, c.Message, c.Why)
		}
		if c.Name == name {
			return c
		}
	}
	t.Fatalf("no check %q in %+v", name, r.Checks)
	return doctor.Check{}
}

func expect(t *testing.T, what string, c doctor.Check, status doctor.Status, message, fix string) {
	t.Helper()
	if c.Status != status || !strings.Contains(c.Message, message) || !strings.Contains(strings.Join(c.Fix, "\n"), fix) {
		t.Errorf("%s: got %s %q, fix %q; want %s …%q…, fix …%q…", what, c.Status, c.Message, c.Fix, status, message, fix)
	}
	if status == doctor.Fail && len(c.Fix) == 0 {
		t.Errorf("%s: fails without a fix", what)
	}
}

const qemuSays = "QEMU emulator version 7.2.22 (Debian 1:7.2)\nCopyright"

func TestQEMU(t *testing.T) {
	const name = "qemu-system-x86_64"
	machines := "Supported machines are:\nmicrovm              microvm (i386)\n"
	for what, c := range map[string]struct {
		programs answers
		bin      string
		needed   bool
		status   doctor.Status
		message  string
		fix      string
	}{
		"good":       {answers{name + " --version": qemuSays, name + " -machine help": machines}, "", true, doctor.OK, "7.2.22, microvm", ""},
		"absent":     {nil, "", true, doctor.Fail, "not there", "sudo apt-get install qemu-system-x86"},
		"not needed": {nil, "", false, doctor.Warn, "not there", "sudo apt-get install qemu-system-x86"},
		"old":        {answers{name + " --version": "QEMU emulator version 5.2.0", name + " -machine help": machines}, "", true, doctor.Warn, "older than 7.2", "apt-get"},
		"no microvm": {answers{name + " --version": qemuSays, name + " -machine help": "pc x\nxmicrovm y\n"}, "", true, doctor.Fail, "no microvm", "apt-get"},
		"broken":     {answers{name + " --version": "!cannot open shared object"}, "", true, doctor.Fail, "cannot open shared object", "apt-get"},
		"wrong path": {nil, "/opt/qemu", true, doctor.Fail, "/opt/qemu is not there", "banger config edit"},
	} {
		expect(t, what, one(t, "qemu", doctor.QEMU(host(nil, c.programs), c.bin, c.needed)), c.status, c.message, c.fix)
	}
}

func TestFixesAreThisDistributions(t *testing.T) {
	for release, want := range map[string]string{
		"ID=debian": "sudo apt-get install qemu-system-x86", "ID=linuxmint\nID_LIKE=\"ubuntu debian\"": "sudo apt-get install qemu-system-x86",
		"ID=fedora": "sudo dnf install qemu-system-x86-core", "ID=arch": "sudo pacman -S qemu-system-x86",
		"ID=\"opensuse-leap\"": "sudo zypper install qemu-x86", "ID=alpine": "sudo apk add qemu-system-x86_64",
		"ID=plan9": "no package of this distribution",
	} {
		c := one(t, "qemu", doctor.QEMU(host(map[string]string{"etc/os-release": release}, nil), "", true))
		if len(c.Fix) != 1 || !strings.Contains(c.Fix[0], want) {
			t.Errorf("%q: %q, want %q", release, c.Fix, want)
		}
	}
	h := host(nil, nil)
	h.UID = 0
	expect(t, "root", one(t, "git", doctor.Program(h, doctor.ToolGit)), doctor.Warn, "not installed", "apt-get install git")
	if c := one(t, "git", doctor.Program(h, doctor.ToolGit)); strings.Contains(c.Fix[0], "sudo") {
		t.Errorf("root is told to use sudo: %q", c.Fix)
	}
}

func TestKVM(t *testing.T) {
	h := host(map[string]string{"proc/cpuinfo": "flags\t\t: fpu hypervisor\n", "dev/kvm": ""}, nil)
	expect(t, "usable", one(t, "kvm", doctor.KVM(h, true, "")), doctor.OK, "test guest ran", "")
	expect(t, "trap", one(t, "kvm", doctor.KVM(h, false, "/dev/kvm opens, but no flag")), doctor.Warn, "software emulation", "nested virtualization")
	h = host(map[string]string{"proc/cpuinfo": "flags : fpu svm\n"}, nil)
	expect(t, "no module", one(t, "kvm", doctor.KVM(h, false, "none")), doctor.Warn, "none", "sudo modprobe kvm_amd")
	h = host(map[string]string{"proc/cpuinfo": "flags : vmx\n", "dev/kvm": ""}, nil)
	expect(t, "no right", one(t, "kvm", doctor.KVM(h, false, "may not")), doctor.Warn, "may not", "usermod -aG kvm ann")
	expect(t, "firmware", one(t, "kvm", doctor.KVM(host(nil, nil), false, "x")), doctor.Warn, "x", "firmware")
}

func TestFirecracker(t *testing.T) {
	expect(t, "absent", one(t, "firecracker", doctor.Firecracker(host(nil, nil), "", false)), doctor.Info, "nothing is missing", "")
	expect(t, "asked for", one(t, "firecracker", doctor.Firecracker(host(nil, nil), "", true)), doctor.Fail, "not there", "banger config edit")
	h := host(nil, answers{"firecracker --version": "Firecracker v1.16.1\n\nmore"})
	expect(t, "there", one(t, "firecracker", doctor.Firecracker(h, "", false)), doctor.OK, "Firecracker v1.16.1", "")
}

func TestImages(t *testing.T) {
	const key = "/usr/share/keyrings/k.gpg"
	files := map[string]string{"usr/share/keyrings/k.gpg": "", "etc/subuid": "bob:1:5\nann:100000:65536\n", "etc/subgid": "1000:100000:65536\n"}
	programs := answers{"mmdebstrap x": "", "apt-get x": "", "newuidmap x": "", "unshare --user --map-root-user true": ""}
	for _, c := range doctor.Run(t.Context(), []doctor.Provider{doctor.Images(host(files, programs), key, false)}).Checks {
		if c.Status != doctor.OK {
			t.Errorf("%+v", c)
		}
	}
	bare := host(nil, answers{"unshare --user --map-root-user true": "!unshare failed: Operation not permitted"})
	p := doctor.Images(bare, key, false)
	expect(t, "mmdebstrap", one(t, "mmdebstrap", p), doctor.Fail, "not installed", "sudo apt-get install mmdebstrap")
	expect(t, "keyring", one(t, "keyring", p), doctor.Fail, key, "sudo apt-get install debian-archive-keyring")
	expect(t, "subids", one(t, "subids", p), doctor.Fail, "/etc/subuid gives ann 0", "--add-subuids 100000-165535")
	expect(t, "newuidmap", one(t, "newuidmap", p), doctor.Fail, "not installed", "apt-get install uidmap")
	if c := one(t, "mmdebstrap", doctor.Images(bare, key, true)); c.Status != doctor.Warn {
		t.Errorf("with the image made nothing is missing today: %+v", c)
	}
	for file, fix := range map[string]string{
		"proc/sys/kernel/unprivileged_userns_clone=0":             "kernel.unprivileged_userns_clone=1",
		"proc/sys/user/max_user_namespaces=0":                     "user.max_user_namespaces=",
		"proc/sys/kernel/apparmor_restrict_unprivileged_userns=1": "apparmor_restrict_unprivileged_userns=0",
	} {
		name, value, _ := strings.Cut(file, "=")
		h := host(map[string]string{name: value + "\n"}, answers{"unshare --user --map-root-user true": "!no"})
		expect(t, name, one(t, "userns", doctor.Images(h, key, false)), doctor.Fail, "cannot be made", fix)
	}
	bare.UID = 0
	for _, c := range doctor.Run(t.Context(), []doctor.Provider{doctor.Images(bare, key, false)}).Checks {
		if c.Name == "userns" || c.Name == "subids" || c.Name == "newuidmap" {
			t.Errorf("root needs no %s", c.Name)
		}
	}
}

func TestSpaceAndMemory(t *testing.T) {
	h := host(map[string]string{"proc/meminfo": "MemTotal:       16777216 kB\nMemAvailable:    2097152 kB\n"}, nil)
	place := func(need, want int64) doctor.Provider {
		return doctor.Space(h, []doctor.Place{{What: "images", Path: "/d", Need: need, Want: want}})
	}
	expect(t, "room", one(t, "space images", place(1*gib, 4*gib)), doctor.OK, "10G free in /d", "")
	expect(t, "tight", one(t, "space images", place(1*gib, 40*gib)), doctor.Warn, "10G free", "banger system gc")
	expect(t, "none", one(t, "space images", place(20*gib, 40*gib)), doctor.Fail, "10G free", "df -h /d")
	h.Free = func(string) (int64, error) { return 0, errors.New("no such device") }
	expect(t, "unknown", one(t, "space images", doctor.Space(h, []doctor.Place{{What: "images", Path: "/d"}})), doctor.Warn, "no such device", "")

	expect(t, "memory", one(t, "memory", doctor.Memory(h, 1*gib)), doctor.OK, "2.0G of 16G available", "")
	expect(t, "busy", one(t, "memory", doctor.Memory(h, 4*gib)), doctor.Warn, "up to 4.0G", "banger config edit")
	expect(t, "small", one(t, "memory", doctor.Memory(h, 20*gib)), doctor.Fail, "", "banger config edit")
	expect(t, "no proc", one(t, "memory", doctor.Memory(host(nil, nil), gib)), doctor.Warn, "cannot be read", "")
	expect(t, "sizes", one(t, "default memory", doctor.Sizes([]doctor.Size{{"memory", "2G", "an eighth of 16G"}})), doctor.OK, "2G (an eighth of 16G)", "")
}

// good is a host on which Isolation has nothing to say.
func good() map[string]string {
	return map[string]string{
		"sys/fs/cgroup/cgroup.controllers":               "cpu memory\n",
		"sys/devices/system/cpu/vulnerabilities/spectre": "Mitigation: IBRS\n",
		"sys/devices/system/cpu/vulnerabilities/mds":     "Not affected\n",
		"sys/kernel/mm/ksm/run":                          "0\n",
		"sys/devices/system/cpu/smt/active":              "0\n",
		"proc/swaps":                                     "Filename\tType\n/dev/zram0 partition 1 0 100\n",
		"proc/self/mountinfo":                            "1 2\n3 4\n",
	}
}

func TestIsolationNamesEveryBadValue(t *testing.T) {
	for _, c := range doctor.Run(t.Context(), []doctor.Provider{doctor.Isolation(host(good(), nil))}).Checks {
		if c.Status != doctor.OK {
			t.Errorf("a good host: %+v", c)
		}
	}
	for _, c := range []struct {
		file, value, name, message, fix string
		status                          doctor.Status
	}{
		{"sys/devices/system/cpu/vulnerabilities/mds", "Vulnerable; SMT on\n", "cpu", "vulnerable: mds", "microcode", doctor.Warn},
		{"sys/kernel/mm/ksm/run", "1\n", "ksm", "on", "/sys/kernel/mm/ksm/run", doctor.Info},
		{"sys/devices/system/cpu/smt/active", "1\n", "smt", "share cores", "smt/control", doctor.Info},
		{"proc/swaps", "Filename\n/swap.img file 1 0 1\n", "swap", "/swap.img", "swapoff /swap.img", doctor.Info},
		{"proc/self/mountinfo", strings.Repeat("m\n", 600), "mounts", "600 mounts", "findmnt", doctor.Warn},
		{"sys/fs/cgroup/cgroup.controllers", "", "cgroups", "version 2 is not mounted", "unified_cgroup_hierarchy", doctor.Info},
	} {
		files := good()
		files[c.file] = c.value
		if c.value == "" {
			delete(files, c.file)
		}
		expect(t, c.name, one(t, c.name, doctor.Isolation(host(files, nil))), c.status, c.message, c.fix)
	}
	// Where the kernel says nothing there is nothing to say.
	if r := doctor.Run(t.Context(), []doctor.Provider{doctor.Isolation(host(nil, nil))}); r.Failed() {
		t.Errorf("an empty /sys fails: %+v", r)
	}
}

func TestDirectoriesMustBeOnesOwn(t *testing.T) {
	dir := func(mode fs.FileMode, uid uint32) *fstest.MapFile {
		return &fstest.MapFile{Mode: fs.ModeDir | mode, Sys: &syscall.Stat_t{Uid: uid}}
	}
	for what, c := range map[string]struct {
		home, state *fstest.MapFile
		code        string
	}{
		"private":         {dir(0o755, 1000), dir(0o700, 1000), ""},
		"not there":       {dir(0o755, 1000), nil, ""},
		"sticky parent":   {dir(0o777|fs.ModeSticky, 0), dir(0o700, 1000), ""},
		"readable":        {dir(0o755, 1000), dir(0o750, 1000), "dir_open"},
		"world":           {dir(0o755, 1000), dir(0o777, 1000), "dir_open"},
		"another's":       {dir(0o755, 1000), dir(0o700, 1001), "dir_foreign"},
		"root's":          {dir(0o755, 1000), dir(0o700, 0), "dir_foreign"},
		"link":            {dir(0o755, 1000), &fstest.MapFile{Mode: fs.ModeSymlink | 0o777, Data: []byte("/elsewhere")}, "dir_is_link"},
		"file":            {dir(0o755, 1000), &fstest.MapFile{Mode: 0o600}, "dir_not_directory"},
		"open parent":     {dir(0o777, 1000), dir(0o700, 1000), "dir_parent_open"},
		"foreign parent":  {dir(0o755, 1001), dir(0o700, 1000), "dir_parent_open"},
		"open, not there": {dir(0o777, 0), nil, "dir_parent_open"},
	} {
		m := fstest.MapFS{".": dir(0o755, 0), "home": dir(0o755, 0), "home/ann": c.home, "elsewhere": dir(0o700, 1000)}
		if c.state != nil {
			m["home/ann/state"] = c.state
		}
		err := doctor.CheckDir(m, 1000, "/home/ann/state")
		if (err == nil) != (c.code == "") || (c.code != "" && errs.CodeOf(err) != c.code) {
			t.Errorf("%s: %v (%s), want %q", what, err, errs.CodeOf(err), c.code)
		}
		if err != nil && (errs.HintOf(err) == "" || !errs.Is(err, errs.Denied)) {
			t.Errorf("%s: kind %s, hint %q", what, errs.KindOf(err), errs.HintOf(err))
		}
	}
	if err := doctor.CheckDir(doctor.ThisHost().Root, doctor.ThisHost().UID, t.TempDir()+"/new"); err != nil && errs.CodeOf(err) != "dir_parent_open" {
		t.Errorf("this host's: %v", err)
	}
}

func TestDaemonConfigAndSockets(t *testing.T) {
	ask := func(v string, err error) func(context.Context) (string, error) {
		return func(context.Context) (string, error) { return v, err }
	}
	expect(t, "same", one(t, "daemon", doctor.Daemon("1.0", ask("1.0", nil))), doctor.OK, "1.0", "")
	expect(t, "skew", one(t, "daemon", doctor.Daemon("1.1", ask("1.0", nil))), doctor.Warn, "bangerd is version 1.0, this program 1.1", "banger daemon stop")
	expect(t, "down", one(t, "daemon", doctor.Daemon("1.1", ask("", errors.New("refused")))), doctor.Fail, "refused", "banger daemon start")
	r := doctor.Run(t.Context(), []doctor.Provider{doctor.Config("/c", errors.New("line 1: unknown key\nline 9: bad value"))})
	if len(r.Checks) != 2 || !r.Failed() {
		t.Errorf("every problem is a check: %+v", r)
	}
	expect(t, "config", one(t, "config", doctor.Config("/c", nil)), doctor.OK, "/c", "")
	expect(t, "short", one(t, "sockets", doctor.Sockets("/run/b/s.sock")), doctor.OK, "/run/b", "")
	expect(t, "long", one(t, "sockets", doctor.Sockets("/"+strings.Repeat("x", 107))), doctor.Fail, "108 bytes", "BANGER_RUNTIME_DIR")
	expect(t, "func", one(t, "x", doctor.Func("x", "y", func(context.Context) (string, error) {
		return "", errs.New(errs.Denied, "c", "no").WithHint("do this")
	})), doctor.Fail, "no", "do this")
}

func TestThisHostIsRead(t *testing.T) {
	h := doctor.ThisHost()
	r := doctor.Run(t.Context(), []doctor.Provider{doctor.Isolation(h), doctor.Memory(h, 1), doctor.Space(h, []doctor.Place{{What: "tests", Path: t.TempDir() + "/a/b"}})})
	if r.Failed() || len(r.Checks) < 3 {
		t.Errorf("%+v", r.Checks)
	}
}
