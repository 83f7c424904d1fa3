package userspace

import (
	"bufio"
	"io"
	"net/netip"
	"os"
	"strings"

	"github.com/banger-dev/banger/internal/errs"
)

const (
	resolvConf    = "/etc/resolv.conf"
	maxResolvers  = 3 // what the C library takes
	maxResolvConf = 64 << 10
)

// hostResolvers reads the host's DNS servers now: they change with networks.
// Search domains are the host's own affair and are not read.
func hostResolvers() ([]netip.AddrPort, error) {
	f, err := os.Open(resolvConf)
	if err != nil {
		return nil, errs.Wrap(err, errs.Unavailable, "network_resolvers", "read the host's DNS servers")
	}
	defer f.Close()
	return parseResolvConf(io.LimitReader(f, maxResolvConf)), nil
}

// parseResolvConf takes the nameserver lines; none means this host, as for the
// C library.
func parseResolvConf(r io.Reader) []netip.AddrPort {
	var out []netip.AddrPort
	sc := bufio.NewScanner(r)
	for sc.Scan() && len(out) < maxResolvers {
		f := strings.Fields(sc.Text())
		if len(f) < 2 || f[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(f[1]); err == nil {
			out = append(out, netip.AddrPortFrom(a, 53))
		}
	}
	if len(out) == 0 {
		out = append(out, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 53))
	}
	return out
}
