package boot

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/banger-dev/banger/internal/agent/disks"
)

// Seed is what the host lays into the initramfs for one VM, at SeedPath. It
// is removed once read: nothing in the guest's root filesystem holds it.
type Seed struct {
	// Token is the VM's secret, by which the guest proves itself (base64
	// in JSON).
	Token []byte `json:"token"`
	// Disks are the serials to wait for; left out, the image's alone, and
	// of the others what is there when it is.
	Disks []string `json:"disks,omitempty"`
}

// Where things lie in the initramfs.
const (
	SeedPath    = "/banger/seed.json"
	ModulesPath = "/banger/modules"
)

const maxSeed = 64 << 10

// ParseSeed reads a seed.
func ParseSeed(b []byte) (Seed, error) {
	var s Seed
	if len(b) > maxSeed {
		return s, errors.New("seed: too long")
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return s, fmt.Errorf("seed: %w", err)
	}
	if len(s.Token) == 0 {
		return s, errors.New("seed: no token")
	}
	if len(s.Disks) == 0 {
		s.Disks = []string{disks.Image}
	}
	return s, nil
}

func takeSeed() (Seed, error) {
	b, err := os.ReadFile(SeedPath)
	if err != nil {
		return Seed{}, fmt.Errorf("seed: %w", err)
	}
	s, err := ParseSeed(b)
	return s, errors.Join(err, os.Remove(SeedPath))
}

// options are the words of the kernel's command line that the boot chain
// heeds.
type options struct {
	// init is the init to hand over to, in place of the image's own; "none"
	// for none at all ("init=").
	init string
	// trace prints every step with its time on the console ("banger.trace").
	trace bool
}

// parseOptions reads a command line; of a word that comes twice the last one
// counts, as in the kernel. What follows "--" is init's.
func parseOptions(cmdline string) options {
	var o options
	for _, word := range strings.Fields(cmdline) {
		key, value, _ := strings.Cut(word, "=")
		switch key {
		case "--":
			return o
		case "init":
			o.init = value
		case "banger.trace":
			o.trace = value != "0"
		}
	}
	return o
}
