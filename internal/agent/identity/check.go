package identity

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/banger-dev/banger/internal/agent/netcfg"
	"github.com/banger-dev/banger/internal/guest/wire"
)

// check refuses what could not be written down faithfully: values end up in
// line-based files.
func check(id wire.Identity) (netcfg.Config, error) {
	var problems []error
	if len(id.Token) < 16 {
		problems = append(problems, fmt.Errorf("token of %d bytes: want 16 or more", len(id.Token)))
	}
	if len(id.Entropy) < 32 {
		problems = append(problems, fmt.Errorf("entropy of %d bytes: want 32 or more", len(id.Entropy)))
	}
	if id.Hostname != "" && !isHostname(id.Hostname) {
		problems = append(problems, fmt.Errorf("hostname %q: want a DNS name of at most 64 bytes", id.Hostname))
	}
	if id.MachineID != "" && !isMachineID(id.MachineID) {
		problems = append(problems, fmt.Errorf("machine id %q: want 32 lower-case hex digits, not all zero", id.MachineID))
	}
	if id.BootID != "" && !isUUID(id.BootID) {
		problems = append(problems, fmt.Errorf("boot id %q: want a UUID", id.BootID))
	}
	for _, line := range append([]string{id.HostKeyPub}, id.Authorized...) {
		if strings.ContainsAny(strings.TrimRight(line, "\n"), "\n\r\x00") {
			problems = append(problems, fmt.Errorf("key %.20q: want one line", line))
		}
	}
	for _, s := range id.Net.DNS {
		if _, err := netip.ParseAddr(s); err != nil {
			problems = append(problems, fmt.Errorf("dns server %q: want an address", s))
		}
	}
	if !isZone(id.Timezone) {
		problems = append(problems, fmt.Errorf("timezone %q: want a name such as Europe/Vienna", id.Timezone))
	}
	for _, kv := range id.Env {
		if !isVariable(kv.Key) || strings.ContainsAny(kv.Value, "\n\r\x00") {
			problems = append(problems, fmt.Errorf("environment variable %q: want a name, and a value of one line", kv.Key))
		}
	}
	if id.Net.MTU > 65535 {
		problems = append(problems, fmt.Errorf("mtu %d: want at most 65535", id.Net.MTU))
	}
	n := id.Net
	c, err := netcfg.Parse(id.MAC, int(min(n.MTU, 65535)), n.IPv4, n.Gateway4, n.IPv6, n.Gateway6)
	return c, errors.Join(append(problems, err)...)
}

func isHostname(s string) bool {
	if len(s) > 64 {
		return false
	}
	for _, label := range strings.Split(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for _, r := range label {
			if !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-') {
				return false
			}
		}
	}
	return true
}

func isMachineID(s string) bool {
	return len(s) == 32 && isLowerHex(s) && strings.Trim(s, "0") != ""
}

func isUUID(s string) bool {
	parts := strings.Split(s, "-")
	if len(parts) != 5 {
		return false
	}
	for i, n := range []int{8, 4, 4, 4, 12} {
		if len(parts[i]) != n || !isLowerHex(parts[i]) {
			return false
		}
	}
	return true
}

func isLowerHex(s string) bool {
	if strings.ToLower(s) != s {
		return false
	}
	_, err := hex.DecodeString(s)
	return err == nil
}

// isZone takes names of the zone database and nothing that leads out of it.
func isZone(s string) bool {
	for _, part := range strings.Split(s, "/") {
		if s != "" && (part == "" || part[0] == '.') {
			return false
		}
	}
	for _, r := range s {
		if !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/_+-.", r)) {
			return false
		}
	}
	return len(s) < 128
}

func isVariable(s string) bool {
	for i, r := range s {
		if !(r == '_' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || i > 0 && r >= '0' && r <= '9') {
			return false
		}
	}
	return s != ""
}
