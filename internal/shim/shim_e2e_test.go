//go:build e2e

package shim_test

import (
	"bufio"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/banger-dev/banger/internal/hypervisor"
	"github.com/banger-dev/banger/internal/network/networktest"
	"github.com/banger-dev/banger/internal/shim"
)

const vmUser = 70017

// As root's shim: every thread is the VM's own user without capabilities, new
// privileges or a way to run anything; console and network go on working.
func TestRootsShimIsNobody(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("the e2e tests run as root: sudo make test")
	}
	cfg, dir := config(t)
	link := userLink(t)
	cfg.Net = &link
	near, far := networktest.Socketpair(t)
	ref, err := launcher(t).Start(within(t, 20*time.Second), cfg, dir, far, &hypervisor.Credential{UID: vmUser, GID: vmUser})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { shim.Stop(within(t, 10*time.Second), ref) })
	far.Close()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", ref.Process.PID))
	if err != nil || len(tasks) < 2 {
		t.Fatalf("threads: %v, %v", tasks, err)
	}
	id := fmt.Sprintf("%d", vmUser)
	want := map[string][]string{
		"Uid:": {id, id, id, id}, "Gid:": {id, id, id, id}, "Groups:": nil,
		"CapEff:": {"0000000000000000"}, "CapPrm:": {"0000000000000000"}, "CapAmb:": {"0000000000000000"},
		"NoNewPrivs:": {"1"}, "Seccomp:": {"2"},
	}
	for _, task := range tasks {
		f, err := os.Open(task)
		if err != nil {
			t.Fatal(err)
		}
		sc := bufio.NewScanner(f)
		for sc.Scan() {
			fields := strings.Fields(sc.Text())
			if v, ok := want[fields[0]]; ok && !slices.Equal(fields[1:], v) {
				t.Errorf("%s: %s, want %v", task, sc.Text(), v)
			}
		}
		f.Close()
	}
	st, err := os.Stat(cfg.Control)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("control socket: %v, %v", st, err)
	}
	// Turning the log over needs no right on its directory.
	c, err := net.Dial("unix", cfg.ConsoleSocket)
	if err != nil {
		t.Fatal(err)
	}
	line := []byte(strings.Repeat("y", 1023) + "\n")
	for range 6 << 10 {
		if _, err := c.Write(line); err != nil {
			t.Fatal(err)
		}
	}
	awaitConsole(t, ref, 6<<20)
	c.Close()
	r, err := shim.Status(within(t, 5*time.Second), ref)
	if err != nil || r.Console.Lost != 0 {
		t.Errorf("report: %+v, %v", r, err)
	}
	t.Logf("confined: %v", r.Confined)
	g := networktest.NewGuest(t, near, link)
	if ok, err := g.Ping(netip.MustParseAddr("10.0.2.2"), 5*time.Second); err != nil || !ok {
		t.Errorf("gateway does not answer: %v", err)
	}
}
