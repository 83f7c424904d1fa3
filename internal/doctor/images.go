package doctor

import (
	"context"
	"fmt"
	"strconv"
	"strings"
)

// subIDs is how many subordinate ids a root file system needs.
const subIDs = 65536

// Images checks what making the default image and kernel on this host needs.
// made says that both are there already: then nothing is missing today.
func Images(h Host, keyring string, made bool) Provider {
	return func(ctx context.Context) []Check {
		bad := Fail
		if made {
			bad = Warn
		}
		list := []Check{h.program("mmdebstrap", "mmdebstrap", "the default image is made with it", bad),
			h.program("apt-get", "apt", "kernel and image come from Debian with apt's own checks", bad), h.keyring(keyring, bad)}
		if h.UID != 0 {
			list = append(list, h.userns(ctx, bad), h.program("newuidmap", "uidmap", "an ordinary user makes images in a user namespace", bad), h.subordinate(bad))
		}
		return list
	}
}

func (h Host) program(name, thing, why string, bad Status) Check {
	if p := h.find(name); p != "" {
		return Check{Name: name, Status: OK, Message: p, Why: why}
	}
	return Check{Name: name, Status: bad, Message: "not installed", Why: why, Fix: h.install(thing)}
}

func (h Host) keyring(file string, bad Status) Check {
	c := Check{Name: "keyring", Status: OK, Message: file, Why: "Debian's packages are checked with it"}
	if !h.exists(file) {
		c.Status, c.Message, c.Fix = bad, file+" is not there", h.install("debian-archive-keyring")
	}
	return c
}

// userns makes a user namespace; what stands in /proc only says why not.
func (h Host) userns(ctx context.Context, bad Status) Check {
	c := Check{Name: "userns", Status: OK, Message: "made one", Why: "an ordinary user makes images in a user namespace"}
	unshare := h.find("unshare")
	if unshare == "" {
		c.Status, c.Message = Warn, "cannot try: no unshare program"
		return c
	}
	out, err := h.Run(ctx, unshare, "--user", "--map-root-user", "true")
	if err == nil {
		return c
	}
	c.Status, c.Message = bad, "cannot be made: "+firstLine(out, err)
	switch {
	case h.read("/proc/sys/kernel/unprivileged_userns_clone") == "0":
		c.Fix = []string{h.sudo("sysctl -w kernel.unprivileged_userns_clone=1")}
	case h.read("/proc/sys/user/max_user_namespaces") == "0":
		c.Fix = []string{h.sudo("sysctl -w user.max_user_namespaces=15000")}
	case h.read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1":
		c.Fix = []string{h.sudo("sysctl -w kernel.apparmor_restrict_unprivileged_userns=0")}
	}
	return c
}

func (h Host) subordinate(bad Status) Check {
	c := Check{Name: "subids", Status: OK, Why: "the files of an image belong to more than one user"}
	for _, f := range []string{"/etc/subuid", "/etc/subgid"} {
		if n := h.subCount(f); n < subIDs {
			user := h.User
			if user == "" {
				user = "$USER"
			}
			c.Status, c.Message = bad, fmt.Sprintf("%s gives %s %d ids, %d are needed", f, user, n, subIDs)
			c.Fix = []string{h.sudo(fmt.Sprintf("usermod --add-subuids 100000-165535 --add-subgids 100000-165535 %s", user))}
			return c
		}
	}
	c.Message = fmt.Sprintf("%d or more", subIDs)
	return c
}

// subCount gives the largest range that a file grants this user, by name or
// number.
func (h Host) subCount(file string) int {
	most := 0
	for line := range strings.SplitSeq(h.read(file), "\n") {
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) != 3 || (f[0] != h.User && f[0] != strconv.Itoa(h.UID)) {
			continue
		}
		if n, err := strconv.Atoi(f[2]); err == nil {
			most = max(most, n)
		}
	}
	return most
}
