package networktest

import (
	"context"
	"encoding/json"
	"net"
	"net/netip"
	"reflect"
	"testing"

	"github.com/banger-dev/banger/internal/network"
)

// Backend is the contract of network.Backend as a test: an adapter's own test
// is a constructor and one call.
func Backend(t *testing.T, b network.Backend) {
	ctx := context.Background()
	link, err := b.Attach(ctx, "vm-a")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Detach(ctx, link) })

	t.Run("a link is complete", func(t *testing.T) {
		if link.Backend != b.Name() || link.Backend == "" {
			t.Errorf("backend %q in the link of %q", link.Backend, b.Name())
		}
		if _, err := net.ParseMAC(link.MAC); err != nil {
			t.Error(err)
		}
		p, err := netip.ParsePrefix(link.Guest.IPv4)
		if err != nil {
			t.Fatal(err)
		}
		gw, err := netip.ParseAddr(link.Guest.Gateway4)
		if err != nil || !p.Contains(gw) {
			t.Errorf("gateway %s is not on %s (%v)", link.Guest.Gateway4, p, err)
		}
		if len(link.Guest.DNS) == 0 || link.MTU < 1280 || link.Guest.MTU > link.MTU {
			t.Errorf("incomplete link: %+v", link)
		}
		if (link.TAP == "") == (link.Stack == nil) {
			t.Errorf("a link has a TAP or a stack: %+v", link)
		}
	})
	t.Run("attaching again gives the same link", func(t *testing.T) {
		again, err := b.Attach(ctx, "vm-a")
		if err != nil || !reflect.DeepEqual(again, link) {
			t.Errorf("got %+v, %v; want %+v", again, err, link)
		}
	})
	t.Run("a link is plain data", func(t *testing.T) {
		raw, err := json.Marshal(link)
		if err != nil {
			t.Fatal(err)
		}
		var back network.Link
		if err := json.Unmarshal(raw, &back); err != nil || !reflect.DeepEqual(back, link) {
			t.Errorf("%s came back as %+v (%v)", raw, back, err)
		}
	})
	t.Run("detaching and sweeping may be repeated", func(t *testing.T) {
		for range 2 {
			if err := b.Detach(ctx, link); err != nil {
				t.Error(err)
			}
			if err := b.Sweep(ctx, func(string) bool { return false }); err != nil {
				t.Error(err)
			}
		}
	})
}
