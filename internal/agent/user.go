package agent

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// user is who a command runs as.
type user struct {
	name, home, shell string
	// credential is nil where the agent's own will do.
	credential *syscall.Credential
}

// lookupUser finds a user in the guest's own files: the agent is static and
// asks no name service. "" is who the agent runs as; in a guest that is root,
// who exists even where there is no /etc/passwd.
func lookupUser(name string) (*user, error) {
	self := os.Geteuid()
	if name == "" && self != 0 {
		u := &user{name: os.Getenv("USER"), home: os.Getenv("HOME"), shell: os.Getenv("SHELL")}
		return u, nil
	}
	if name == "" {
		name = "root"
	}
	for fields := range entries("/etc/passwd", 7) {
		if fields[0] != name && fields[2] != name {
			continue
		}
		uid, err1 := strconv.ParseUint(fields[2], 10, 32)
		gid, err2 := strconv.ParseUint(fields[3], 10, 32)
		if err1 != nil || err2 != nil {
			continue
		}
		u := &user{name: fields[0], home: fields[5], shell: fields[6]}
		if int(uid) != self {
			u.credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid), Groups: groupsOf(fields[0])}
		}
		return u, nil
	}
	if name == "root" || name == "0" {
		return &user{name: "root", home: "/root", shell: ""}, nil
	}
	return nil, fmt.Errorf("no user %q in this guest", name)
}

// groupsOf lists the groups that name a user as a member.
func groupsOf(name string) []uint32 {
	var out []uint32
	for fields := range entries("/etc/group", 4) {
		for _, member := range strings.Split(fields[3], ",") {
			if member == name {
				if gid, err := strconv.ParseUint(fields[2], 10, 32); err == nil {
					out = append(out, uint32(gid))
				}
			}
		}
	}
	return out
}

// entries gives the lines of a file like /etc/passwd that have n fields.
func entries(path string, n int) func(func([]string) bool) {
	return func(yield func([]string) bool) {
		b, err := os.ReadFile(path)
		if err != nil {
			return
		}
		for line := range strings.Lines(string(b)) {
			fields := strings.Split(strings.TrimSpace(line), ":")
			if len(fields) == n && !yield(fields) {
				return
			}
		}
	}
}
