package qemu_test

import (
	"os"
	"testing"

	"github.com/banger-dev/banger/internal/launch"
)

// TestMain doubles as the launcher.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == launch.Verb {
		os.Exit(launch.Main())
	}
	os.Exit(m.Run())
}
