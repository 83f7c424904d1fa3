//go:build e2e

package test

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestStoriesInMicroVMs tells the stories of e2e in real microVMs of the
// default image, one after the other. The image is made once, in a directory
// that all end-to-end tests share.
func TestStoriesInMicroVMs(t *testing.T) {
	const config = "hypervisor = \"qemu\"\n[vm_defaults]\nmemory = \"640M\"\ndisk = \"3G\"\n"
	cache := os.Getenv("BANGER_TEST_CACHE")
	if cache == "" {
		cache = fmt.Sprintf("/var/tmp/banger-test-%d", os.Geteuid())
	}
	env := []string{"BANGER_DATA_DIR=" + filepath.Join(cache, "data"), "BANGER_CACHE_DIR=" + filepath.Join(cache, "cache")}
	if os.Getenv("BANGER_TEST_BIN") == "" {
		agent := filepath.Join(t.TempDir(), "banger-vsock-agent")
		build := exec.Command("go", "build", "-tags", "netgo,osusergo", "-ldflags", "-s -w", "-o", agent, "../cmd/banger-vsock-agent")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("building the agent: %v\n%s", err, out)
		}
		env = append(env, "BANGER_AGENT="+agent)
	}
	d := newDesk(t, config)
	d.env = append(d.env, env...)
	d.banger("pull", "debian-bookworm", "-q")
	if err := flag.Set("test.parallel", "1"); err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, story("e2e", config, env...))
}
