"""A circuit read on given prompts: what its heads attend to, what its writers add to the answer, where edges count."""

from edgeprune.reading.attention import attention_patterns as attention_patterns
from edgeprune.reading.attention_roles import attention_by_role as attention_by_role
from edgeprune.reading.direct import DirectAttribution as DirectAttribution
from edgeprune.reading.direct import direct_attribution as direct_attribution
from edgeprune.reading.interpret import Reading as Reading
from edgeprune.reading.interpret import interpret_circuit as interpret_circuit
from edgeprune.reading.patterns import AttentionPatterns as AttentionPatterns
from edgeprune.reading.role_effects import RoleEffects as RoleEffects
from edgeprune.reading.role_effects import role_effects as role_effects
