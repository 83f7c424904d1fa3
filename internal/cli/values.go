package cli

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	bangerv1 "github.com/banger-dev/banger/internal/api/banger/v1"
	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/units"
)

// size is a flag's number of bytes: 512M, 2G, 1.5GiB, or a plain number.
// Units are powers of 1024 however they are written.
type size int64

func (s *size) String() string {
	if *s == 0 {
		return ""
	}
	return strconv.FormatInt(int64(*s), 10)
}

func (s *size) Type() string { return "SIZE" }

func (s *size) Set(v string) error {
	n, err := parseSize(v)
	*s = size(n)
	return err
}

// parseSize reads a size of at least one byte.
func parseSize(v string) (int64, error) {
	n, err := units.ParseSize(v)
	if err == nil && n == 0 {
		err = fmt.Errorf("%q is nothing: write it as 512M, 2G or 1.5GiB", v)
	}
	return n, err
}

// span is a flag's duration as Go writes them: 90s, 5m, 8h.
type span time.Duration

func (d *span) String() string {
	if *d == 0 {
		return ""
	}
	return time.Duration(*d).String()
}

func (d *span) Type() string { return "DURATION" }

func (d *span) Set(v string) error {
	t, err := time.ParseDuration(v)
	if err != nil {
		return fmt.Errorf("%q is no duration: write 90s, 5m or 8h", v)
	}
	if t <= 0 {
		return fmt.Errorf("%q is no time at all: write 90s, 5m or 8h", v)
	}
	*d = span(t)
	return nil
}

// proto is the duration for the API, nil where none was given.
func (d span) proto() *durationpb.Duration {
	if d == 0 {
		return nil
	}
	return durationpb.New(time.Duration(d))
}

// choice is a flag with a closed list of values; the first is the default.
type choice struct {
	value   string
	allowed []string
}

func choose(allowed ...string) choice { return choice{value: allowed[0], allowed: allowed} }

func (c *choice) String() string { return c.value }
func (c *choice) Type() string   { return strings.Join(c.allowed, "|") }
func (c *choice) Set(v string) error {
	for _, a := range c.allowed {
		if v == a {
			c.value = v
			return nil
		}
	}
	return fmt.Errorf("%q is not one of %s", v, strings.Join(c.allowed, ", "))
}

// parseLabels turns k=v arguments into a map.
func parseLabels(list []string) (map[string]string, error) {
	if len(list) == 0 {
		return nil, nil
	}
	m := make(map[string]string, len(list))
	for _, l := range list {
		k, v, ok := strings.Cut(l, "=")
		if !ok || k == "" {
			return nil, errs.New(errs.Invalid, "label_invalid", "label %q is not KEY=VALUE", l).WithHint("for example: --label team=web")
		}
		if old, twice := m[k]; twice && old != v {
			return nil, errs.New(errs.Invalid, "label_invalid", "label %q is given twice with different values", k)
		}
		m[k] = v
	}
	return m, nil
}

// parseEnv turns K=V and K arguments into variables; K takes the value that
// banger itself has, and is left out where it has none.
func parseEnv(list []string, lookup func(string) (string, bool)) ([]*bangerv1.EnvVar, error) {
	var out []*bangerv1.EnvVar
	for _, e := range list {
		k, v, given := strings.Cut(e, "=")
		if k == "" || strings.ContainsRune(e, 0) {
			return nil, errs.New(errs.Invalid, "env_invalid", "environment %q is not NAME=VALUE or NAME", e).WithHint("for example: -e DEBUG=1")
		}
		if !given {
			var ok bool
			if v, ok = lookup(k); !ok {
				continue
			}
		}
		out = append(out, &bangerv1.EnvVar{Name: k, Value: v})
	}
	return out, nil
}
