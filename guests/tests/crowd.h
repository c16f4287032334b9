/* Where the crowd test's pages are mapped; lib/page_map.S lays the tables down. */
#pragma once

#define CROWD_BASE 0x8000000000
#define CROWD_WINDOWS 7
/* The border in the middle of window w's two pages. */
#define CROWD_BORDER(w) (CROWD_BASE + (2 * (w) + 1) * 0x40000000)

/* Windows: the code is one for both CPUs; each has the other three in an order of its own. */
#define CROWD_CODE 0
#define CROWD_SOURCE 1
#define CROWD_TARGET 2
#define CROWD_STACK 3
#define CROWD_SECOND 3 /* what to add for the second CPU */
