package archtest

import (
	"os/exec"
	"strings"
	"testing"
)

// What a binary must not link, by import path prefix.
var unlinked = map[string]map[string]string{
	"cmd/banger-vsock-agent": {
		"net/http":                         "it is copied into every guest and speaks one channel",
		"connectrpc.com":                   "the API is the host's",
		"modernc.org":                      "the store is the host's",
		"gvisor.dev":                       "the network is the host's",
		"github.com/spf13":                 "it has no command line",
		"github.com/Microsoft":             "images are the host's",
		"google.golang.org/protobuf/proto": "the API is the host's",
		"internal/daemon":                  "it carries nothing of the host's",
		"internal/vm":                      "it carries nothing of the host's",
		"C":                                "it must be static",
	},
	"cmd/banger": {
		"modernc.org":          "only the daemon opens the store",
		"gvisor.dev":           "only the process beside a VM runs a network",
		"github.com/Microsoft": "only the daemon makes images",
		"internal/daemon":      "the CLI is one client among others",
		"internal/vm":          "the CLI is one client among others",
		"internal/hypervisor":  "the CLI is one client among others",
	},
	"cmd/bangerd": {
		"github.com/spf13": "the daemon has no command line to speak of",
		"internal/cli":     "a door does not know another door",
	},
}

func TestBinariesLinkOnlyWhatTheyNeed(t *testing.T) {
	for cmd, never := range unlinked {
		out, err := exec.Command("go", "list", "-deps", module+cmd).Output()
		if err != nil {
			t.Fatalf("go list %s: %v", cmd, err)
		}
		for dep := range strings.Lines(string(out)) {
			dep = strings.TrimPrefix(strings.TrimSpace(dep), module)
			for prefix, why := range never {
				if dep == prefix || strings.HasPrefix(dep, prefix+"/") {
					t.Errorf("%s links %s: %s", cmd, dep, why)
				}
			}
		}
	}
}
