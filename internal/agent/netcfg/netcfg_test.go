package netcfg

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestAddrMessageReadsBackAsWritten(t *testing.T) {
	for _, s := range []string{"10.0.2.15/24", "fd00::15/64", "192.0.2.1/32"} {
		want := netip.MustParsePrefix(s)
		b := addrMessage(unix.RTM_NEWADDR, 7, want).finish(3)
		if len(b)%4 != 0 || int(binary.NativeEndian.Uint32(b)) != len(b) {
			t.Fatalf("%s: length %d in a message of %d", s, binary.NativeEndian.Uint32(b), len(b))
		}
		rs, err := split(b)
		if err != nil || len(rs) != 1 || rs[0].kind != unix.RTM_NEWADDR || rs[0].seq != 3 {
			t.Fatalf("%s: %v, %v", s, rs, err)
		}
		index, got, err := addrOf(rs[0].body)
		if err != nil || index != 7 || got != want {
			t.Errorf("%s: read back as %d %v, %v", s, index, got, err)
		}
		if want.Addr().Is6() != (rs[0].body[2]&unix.IFA_F_NODAD != 0) {
			t.Errorf("%s: duplicate address detection flag is wrong", s)
		}
	}
}

func TestLinkLocalFollowsTheMAC(t *testing.T) {
	got := linkLocal(net.HardwareAddr{0x52, 0x54, 0, 0, 0, 1})
	if got.String() != "fe80::5054:ff:fe00:1/64" || linkLocal(nil).IsValid() {
		t.Errorf("got %v", got)
	}
	if b := addrMessage(unix.RTM_NEWADDR, 1, got).finish(1); b[headerLen+3] != unix.RT_SCOPE_LINK {
		t.Error("its scope is not the link")
	}
}

func TestBroadcastIsLastAddressOfThePrefix(t *testing.T) {
	got := broadcast(netip.MustParsePrefix("10.1.2.3/22"))
	if !bytes.Equal(got, []byte{10, 1, 3, 255}) {
		t.Errorf("got %v", got)
	}
}

// The bytes are spelled out once, so that a change of layout cannot agree
// with itself.
func TestRouteMessageBytes(t *testing.T) {
	got := routeMessage(2, netip.MustParseAddr("10.0.2.2")).finish(1)
	want := []byte{
		44, 0, 0, 0, 24, 0, 5, 5, 1, 0, 0, 0, 0, 0, 0, 0,
		unix.AF_INET, 0, 0, 0, unix.RT_TABLE_MAIN, unix.RTPROT_STATIC, 0, unix.RTN_UNICAST, 4, 0, 0, 0,
		8, 0, unix.RTA_GATEWAY, 0, 10, 0, 2, 2,
		8, 0, unix.RTA_OIF, 0, 2, 0, 0, 0,
	}
	if !bytes.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

func TestParseRefusesWhatIsNoAddress(t *testing.T) {
	c, err := Parse("52:54:00:12:34:56", 1400, "10.0.2.15/24", "10.0.2.2", "fd00::15/64", "fd00::2")
	if err != nil || c.IPv4.String() != "10.0.2.15/24" || c.Gateway6.String() != "fd00::2" {
		t.Fatalf("%+v, %v", c, err)
	}
	if c, err := Parse("", 0, "", "", "", ""); err != nil || !c.Empty() {
		t.Errorf("nothing: %+v, %v", c, err)
	}
	for _, bad := range [][5]string{
		{"52:54", "", "", "", ""}, {"", "10.0.2.15", "", "", ""}, {"", "fd00::1/64", "", "", ""},
		{"", "", "10.0.0", "", ""}, {"", "", "fd00::1", "", ""}, {"", "", "", "10.0.0.1/8", ""}, {"", "", "", "", "10.0.0.1"},
	} {
		if _, err := Parse(bad[0], 0, bad[1], bad[2], bad[3], bad[4]); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestCardPassesOverWhatHasNoDevice(t *testing.T) {
	sysfs := t.TempDir()
	if _, err := Card(sysfs); err == nil {
		t.Error("a card was found where there is none")
	}
	for _, name := range []string{"eth10/device", "eth2/device", "docker0", "lo"} {
		if err := os.MkdirAll(filepath.Join(sysfs, "class/net", name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := Card(sysfs); err != nil || got != "eth2" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestReadLink(t *testing.T) {
	sysfs := t.TempDir()
	dir := filepath.Join(sysfs, "class/net/eth0")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := readLink(sysfs, "eth0"); err == nil {
		t.Error("an interface without an index")
	}
	for file, text := range map[string]string{"ifindex": "2\n", "mtu": "1500\n", "address": "52:54:00:00:00:01\n", "flags": "0x1003\n"} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want := link{name: "eth0", index: 2, mtu: 1500, mac: "52:54:00:00:00:01", up: true}
	if got, err := readLink(sysfs, "eth0"); err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
}

func FuzzMessagesFromTheKernel(f *testing.F) {
	f.Add(addrMessage(unix.RTM_NEWADDR, 1, netip.MustParsePrefix("10.0.0.1/8")).finish(1))
	f.Add([]byte{17, 0, 0, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		rs, err := split(b)
		if err != nil {
			return
		}
		for _, r := range rs {
			_, _, _ = addrOf(r.body)
			_, _ = attrs(r.body)
		}
	})
}
