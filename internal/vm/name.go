package vm

import (
	"crypto/rand"
	"encoding/hex"
	"math/big"
	"strings"

	"github.com/banger-dev/banger/internal/errs"
)

// MaxName is the longest name a VM may have: a DNS label's length.
const MaxName = 63

// CheckName says whether name can be a VM's: a DNS label in lower case that is
// not all digits and cannot be taken for an id.
func CheckName(name string) error {
	bad := func(why string) error {
		e := errs.New(errs.Invalid, "vm_name_invalid", "%q cannot name a VM: %s", clip(name, 80), why)
		if s := suggestName(name); s != "" {
			return e.WithHint("for example: --name %s", s)
		}
		return e.WithHint("use letters a-z, digits and dashes: --name web-1")
	}
	switch {
	case name == "":
		return bad("it is empty")
	case len(name) > MaxName:
		return bad("it is longer than 63 characters")
	case name[0] == '-' || name[len(name)-1] == '-':
		return bad("it begins or ends with a dash")
	}
	digits := true
	for i := range len(name) {
		c := name[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return bad("names are DNS labels (a-z, 0-9 and dashes)")
		}
		digits = digits && c >= '0' && c <= '9'
	}
	if digits {
		return bad("it has no letter")
	}
	if isID(name) {
		return bad("it looks like an id")
	}
	return nil
}

// suggestName makes the nearest valid name of a bad one, or "".
func suggestName(name string) string {
	var b strings.Builder
	for _, c := range strings.ToLower(clip(name, MaxName)) {
		switch {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9':
			b.WriteRune(c)
		case b.Len() > 0 && !strings.HasSuffix(b.String(), "-"):
			b.WriteByte('-')
		}
	}
	s := strings.Trim(b.String(), "-")
	if s == "" || strings.Trim(s, "0123456789") == "" || isID(s) {
		return ""
	}
	return s
}

func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return s[:n]
}

// newID makes a VM's id: 16 hex digits.
func newID() string {
	var b [8]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

func isID(s string) bool {
	if len(s) != 16 {
		return false
	}
	_, err := hex.DecodeString(s)
	return err == nil && strings.ToLower(s) == s
}

func pick(words []string) string {
	n, err := rand.Int(rand.Reader, big.NewInt(int64(len(words))))
	if err != nil {
		return words[0]
	}
	return words[n.Int64()]
}

// makeName makes up an adjective-animal name that taken does not have. When
// the words run out it adds a number.
func makeName(taken func(string) bool) string {
	for range 50 {
		if n := pick(adjectives) + "-" + pick(animals); !taken(n) {
			return n
		}
	}
	for {
		if n := pick(adjectives) + "-" + pick(animals) + "-" + newID()[:4]; !taken(n) {
			return n
		}
	}
}

var adjectives = strings.Fields(`able agile airy alert amber apt azure bold brave bright brisk bronze busy calm
 candid clear clever cool copper coral cosy crisp deft eager early easy fair famous fancy fast fine firm fleet fond
 frank free fresh gentle glad golden grand green handy happy hardy hazel honest humble ideal indigo ivory jade jolly
 just keen kind lively loyal lucid lucky lunar magic mellow merry mild mint misty modest neat nice nimble noble novel
 olive open opal patient pearl plain polite prime proud pure quick quiet rapid rare ready regal rosy royal ruby rustic
 sage sandy sharp shiny silent silver simple sleek smart smooth snappy snowy solar solid spry steady still sturdy
 sunny super sure swift tame teal tender tidy topaz tough trim true trusty upbeat vast velvet vivid warm wise witty zesty`)

var animals = strings.Fields(`adder alpaca ant antelope badger bat bear beaver bee beetle bison boar bobcat camel
 caribou cat cheetah chough cicada cobra condor coyote crab crane cricket crow deer dingo dolphin dove dragonfly duck
 eagle eel egret elk emu falcon ferret finch firefly fox frog gazelle gecko gibbon goat goose grouse gull hare hawk
 hedgehog heron hippo hornet horse ibex ibis iguana impala jackal jaguar jay kestrel kite kiwi koala lark lemur
 leopard lion lizard llama lobster lynx macaw magpie mantis marmot marten mole moose moth mouse mule newt octopus
 okapi orca oriole osprey otter owl ox panda panther parrot pelican penguin pigeon pika plover pony puffin puma quail
 rabbit raccoon ram raven robin rook salmon seal shrew shrimp skunk sloth snail snipe sparrow spider squid squirrel
 stoat stork swallow swan swift tapir tern tiger toad toucan trout turtle viper vole wasp weasel whale wolf wombat
 woodpecker wren yak zebra`)
