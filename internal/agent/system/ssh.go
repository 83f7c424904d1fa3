package system

import (
	"context"
	"net"
	"os"
	"strings"

	"github.com/banger-dev/banger/internal/agent/sshd"
	"github.com/banger-dev/banger/internal/guest/wire"
)

const cgroupRoot = "/sys/fs/cgroup/"

// ServeSSH serves one ssh connection with the identity's host key, and closes
// it. Keys that somebody added to root's authorized_keys let in too.
func (s *System) ServeSSH(ctx context.Context, conn net.Conn) {
	s.mu.Lock()
	hostKey := s.hostKey
	authorized := []byte(strings.Join(s.keys, "\n") + "\n")
	s.mu.Unlock()
	if own, err := os.ReadFile(homeDir + "/.ssh/authorized_keys"); err == nil {
		authorized = append(authorized, own...)
	}
	group := cgroupRoot + wire.CommandCgroup
	if err := os.Mkdir(group, 0o755); err != nil && !os.IsExist(err) {
		group = ""
	}
	// How a connection ended is the client's to say.
	_ = sshd.Serve(ctx, conn, sshd.Config{HostKey: hostKey, Authorized: authorized, Group: group})
}
