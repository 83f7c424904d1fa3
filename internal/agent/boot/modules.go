package boot

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// ParseModules reads a list of kernel modules: one path per line in the order
// of loading, "#" starts a comment.
func ParseModules(list string) ([]string, error) {
	var out []string
	for i, line := range strings.Split(list, "\n") {
		line, _, _ = strings.Cut(line, "#")
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		if !strings.HasPrefix(line, "/") {
			return nil, fmt.Errorf("modules, line %d: %q is no absolute path", i+1, line)
		}
		if moduleFlags(line) < 0 {
			return nil, fmt.Errorf("modules, line %d: %q is neither .ko nor .ko.xz, .ko.zst or .ko.gz", i+1, line)
		}
		out = append(out, line)
	}
	return out, nil
}

// moduleFlags gives finit_module's flags for a file name, -1 for one that is
// no module's. The kernel decompresses in the one format it was built for.
func moduleFlags(name string) int {
	switch {
	case strings.HasSuffix(name, ".ko"):
		return 0
	case strings.HasSuffix(name, ".ko.xz"), strings.HasSuffix(name, ".ko.zst"), strings.HasSuffix(name, ".ko.gz"):
		return unix.MODULE_INIT_COMPRESSED_FILE
	}
	return -1
}

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	err = unix.FinitModule(int(f.Fd()), "", moduleFlags(path))
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("load %s: %w", path, err)
	}
	return nil
}
